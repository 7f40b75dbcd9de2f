"""Rows from the documents of a task of lm-evaluation-harness."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from typing import Any

from harness import Component, HarnessError, Record, Source

COMPONENTS: dict[str, Component] = {
    "lm_eval": Component(
        summary="Reads the documents of a task of an installed lm-evaluation-harness; for suites.",
        factory="harness_sources.lm_eval_task:LmEvalSource",
        options={
            "task": {"type": "string", "minLength": 1, "description": "The task's name there, e.g. arc_easy."},
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
    """The evaluation documents of one task, rendered by the task. A location is `lm_eval:task:[index]`, from 0.

    A task of the type `multiple_choice` gives rows of `question`, `choices` and `answer`; `generate_until` gives
    `prompt` and `completion`; `loglikelihood_rolling` gives `text`. They are evaluated like any other rows. With
    "template": false, multiple choice and rolling likelihoods give the same numbers as that package.
    """

    def __init__(self, task: str, shots: int, include: str | None) -> None:
        """Create the source.

        Args:
            task: The task's name.
            shots: Solved examples before each question, drawn by the task from its few-shot split with a fixed seed.
            include: A folder with further tasks. Only it is searched, which saves indexing all tasks (about 20 s).
        """
        self._name, self._shots, self._include = task, shots, include

    def records(self) -> Iterator[Record]:
        """Yield every document.

        Raises:
            HarnessError: The package, the task or its data are missing.
        """
        task = self._load_task()
        task.set_fewshot_seed(_FEWSHOT_SEED)
        index = -1
        for index, document in enumerate(task.eval_docs):
            yield Record(f"{self._location}:[{index}]", self._build_row(task, document))
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
            return {"prompt": prompt, "completion": target[0] if isinstance(target, list) else str(target)}
        several_questions = " with several questions" if output_type == "multiple_choice" else ""
        what = f"is a task of the type {output_type}{several_questions}, which is not supported"
        hint = "name a task of the type multiple_choice, generate_until or loglikelihood_rolling"
        raise HarnessError(self._location, what, hint)

    def _load_task(self) -> Any:
        try:
            tasks = importlib.import_module("lm_eval.tasks")
        except ImportError as error:
            hint = "pip install 'harness-sft[oracle]'"
            raise HarnessError(self._location, f"needs lm_eval {_MIN_VERSION} or newer: {error}", hint) from None
        manager = tasks.TaskManager(include_path=self._include, include_defaults=self._include is None)
        if self._name not in manager.all_tasks:
            raise HarnessError(self._location, "there is no such task", "list the tasks with `lm-eval ls tasks`")
        try:
            tasks_by_name = tasks.get_task_dict([self._name], manager)
        except Exception as error:  # loading the task's data can fail in any way: network, cache, columns
            hint = "check that its data are on this machine or that the hub can be reached"
            raise HarnessError(self._location, f"does not load: {type(error).__name__}: {error}", hint) from error
        task = tasks_by_name.get(self._name)
        if task is None or not hasattr(task, "eval_docs"):
            raise HarnessError(self._location, "is a group of tasks", "name one of its tasks")
        return task
