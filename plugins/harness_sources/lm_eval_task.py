"""Rows from the documents of a task of lm-evaluation-harness."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from typing import Any

from harness import Component, HarnessError, Record, Source

COMPONENTS: dict[str, Component] = {
    "lm_eval": Component(
        summary="Reads the documents of a task or group of an installed lm-evaluation-harness; for suites.",
        factory="harness_sources.lm_eval_task:LmEvalSource",
        options={
            "task": {"type": "string", "minLength": 1, "description": "Name of a task or a group, e.g. arc_easy."},
            "shots": {
                "type": "integer",
                "minimum": 0,
                "default": 0,
                "description": "Solved examples before each question.",
            },
            "include": {
                "type": ["string", "null"],
                "format": "path",
                "default": None,
                "description": "A folder with your own tasks; only it is searched. null: the package's tasks.",
            },
        },
        required=("task",),
    ),
}

_MIN_VERSION = "0.4.9"
_FEWSHOT_SEED = 1234  # the package's own default


class LmEvalSource(Source):
    """The evaluation documents of a task or of a group's tasks, rendered by the task.

    A location is `lm_eval:task:[index]`, from 0. A row has the name of its task in `task`, and a generation task also
    the task's own columns in `document`, which metrics get with `keep`, e.g. `document.kwargs` of ifeval.

    A task of the type `multiple_choice` gives rows of `question`, `choices` and `answer`; `generate_until` gives
    `prompt` and `completion`; `loglikelihood_rolling` gives `text`. They are evaluated like any other rows. With
    "template": false, multiple choice and rolling likelihoods give the same numbers as that package.
    """

    def __init__(self, task: str, shots: int, include: str | None) -> None:
        """Create the source.

        Args:
            task: The name of a task, or of a group, whose tasks follow one another.
            shots: Solved examples before each question, drawn by the task from its few-shot split with a fixed seed.
            include: A folder with further tasks. Only it is searched, which saves indexing all tasks (about 20 s).
        """
        self._name, self._shots, self._include = task, shots, include

    def records(self) -> Iterator[Record]:
        """Yield every document.

        Raises:
            HarnessError: The package, the task or its data are missing.
        """
        index = -1
        for name, task in load_tasks(self._name, self._include).items():
            task.set_fewshot_seed(_FEWSHOT_SEED)
            for index, document in enumerate(task.eval_docs):
                yield Record(f"lm_eval:{name}:[{index}]", {**self._build_row(task, document), "task": name})
        if index < 0:
            raise HarnessError(self._location, "the task has no documents", "name another task")

    @property
    def _location(self) -> str:
        return f"lm_eval:{self._name}"

    def _build_row(self, task: Any, document: Any) -> dict[str, Any]:
        output_type = task.OUTPUT_TYPE
        if output_type == "loglikelihood_rolling":
            return {"text": task.doc_to_target(document)}
        prompt = task.fewshot_context(document, num_fewshot=self._shots)
        target = task.doc_to_target(document)
        if output_type == "multiple_choice" and not task.multiple_input:
            return {"question": prompt, "choices": list(task.doc_to_choice(document)), "answer": target}
        if output_type == "generate_until":
            completion = target[0] if isinstance(target, list) else str(target)
            return {"prompt": prompt, "completion": completion, "document": dict(document)}
        several_questions = " with several questions" if output_type == "multiple_choice" else ""
        what = f"is a task of the type {output_type}{several_questions}, which is not supported"
        hint = "name a task of the type multiple_choice, generate_until or loglikelihood_rolling"
        raise HarnessError(self._location, what, hint)


def load_task(name: str, include: str | None) -> Any:
    """Return a task of lm-evaluation-harness, not a group.

    Args:
        name: Its name.
        include: A folder with further tasks. Only it is searched.

    Raises:
        HarnessError: The package, the task or its data are missing, or the name is that of a group.
    """
    tasks = load_tasks(name, include)
    if list(tasks) != [name]:
        what = "is a group"
        raise HarnessError(f"lm_eval:{name}", what, f"name one of its tasks: {', '.join(tasks)}"[:200])
    return tasks[name]


def load_tasks(name: str, include: str | None) -> dict[str, Any]:
    """Return name -> task: one, or those of the group. Arguments and errors as in `load_task`."""
    location = f"lm_eval:{name}"
    try:
        tasks = importlib.import_module("lm_eval.tasks")
    except ImportError as error:
        hint = "pip install 'harness-sft[oracle]'"
        raise HarnessError(location, f"needs lm_eval {_MIN_VERSION} or newer: {error}", hint) from None
    manager = tasks.TaskManager(include_path=include, include_defaults=include is None)
    if name not in (*manager.all_tasks, *manager.all_groups):
        raise HarnessError(location, "there is no such task", "list the tasks with `lm-eval ls tasks`")
    try:
        tasks_by_name = tasks.get_task_dict([name], manager)
    except Exception as error:  # loading the task's data can fail in any way: network, cache, columns
        hint = "check that its data are on this machine or that the hub can be reached"
        raise HarnessError(location, f"does not load: {type(error).__name__}: {error}", hint) from error
    return dict(_leaves(tasks_by_name))


def _leaves(tasks: Mapping[Any, Any]) -> Iterator[tuple[str, Any]]:
    """Yield (name, task) of nested groups."""
    for name, task in tasks.items():
        if isinstance(task, Mapping):
            yield from _leaves(task)
        elif isinstance(task, tuple):  # (name of the group, task)
            yield str(name), task[1]
        else:
            yield str(name), task
