"""The documents of a task of lm-evaluation-harness, as rows."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from typing import Any

from harness import HarnessError, Record, Source

_MIN_VERSION = "0.4.9"


class LmEvalSource(Source):
    """The evaluation documents of one task, rendered by the task itself; a place is `lm_eval:task:[index]`, from 0.

    A task of the type `multiple_choice` gives rows of `question`, `choices` and `answer`; `generate_until` gives
    `prompt` and `completion`; `loglikelihood_rolling` gives `text`. They are then asked and scored here, like any other
    rows: with "template": false, multiple choice and rolling likelihoods give that package's own numbers.
    shots: solved examples before each question, drawn by the task from its few-shot split, seeded. include: a folder
    with further tasks; given, it is searched alone, which spares the index of all (about 20 s).
    """

    def __init__(self, task: str, shots: int, include: str | None) -> None:
        self._name, self._shots, self._include = task, shots, include

    def records(self) -> Iterator[Record]:
        """Every document. Raises HarnessError where the package, the task or its data are missing."""
        task = self._load_task()
        task.set_fewshot_seed(1234)  # the package's own default
        index = -1
        for index, document in enumerate(task.eval_docs):
            yield Record(f"lm_eval:{self._name}:[{index}]", self._build_row(task, document))
        if index < 0:
            raise HarnessError(self._location, "the task has no documents", "name another")

    @property
    def _location(self) -> str:
        return f"lm_eval:{self._name}"

    def _build_row(self, task: Any, document: Any) -> dict[str, Any]:
        kind = task.OUTPUT_TYPE
        if kind == "loglikelihood_rolling":
            return {"text": task.doc_to_target(document)}
        asked = task.fewshot_context(document, num_fewshot=self._shots)
        target = task.doc_to_target(document)
        if kind == "multiple_choice" and not task.multiple_input:
            return {"question": asked, "choices": list(task.doc_to_choice(document)), "answer": target}
        if kind == "generate_until":
            return {"prompt": asked, "completion": target[0] if isinstance(target, list) else str(target)}
        what = f"is a task of the type {kind}" + (" with several questions" if kind == "multiple_choice" else "")
        raise HarnessError(self._location, what, "multiple_choice, generate_until and loglikelihood_rolling are read")

    def _load_task(self) -> Any:
        try:
            tasks = importlib.import_module("lm_eval.tasks")
        except ImportError as error:
            hint = "pip install 'harness-sft[oracle]'"
            raise HarnessError(self._location, f"needs lm_eval {_MIN_VERSION} or newer: {error}", hint) from None
        manager = tasks.TaskManager(include_path=self._include, include_defaults=self._include is None)
        if self._name not in manager.all_tasks:
            raise HarnessError(self._location, "there is no such task", "`lm-eval ls tasks` lists them")
        try:
            found = tasks.get_task_dict([self._name], manager)
        except Exception as error:  # of the data sets' loading: network, cache, columns
            hint = "are its data here, or the hub within reach?"
            raise HarnessError(self._location, f"does not load: {type(error).__name__}: {error}", hint) from error
        task = found.get(self._name)
        if task is None or not hasattr(task, "eval_docs"):
            raise HarnessError(self._location, "is a group of tasks", "name one of its tasks")
        return task
