"""Scores of generated answers as a task of lm-evaluation-harness computes them: its own filter and its own metric."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cached_property
from importlib import metadata
from pathlib import Path
from typing import Any

from harness_sources.lm_eval_task import load_task

from harness import Component, ComponentExample, HarnessError, Item
from harness_metrics.base import RatioMetric

COMPONENTS: dict[str, Component] = {
    "lm_eval": Component(
        summary="Scores of a generation task of an installed lm-evaluation-harness, by its own filters and metrics.",
        factory="harness_metrics.lm_eval_scores:LmEvalScores",
        options={
            "task": {"type": "string", "minLength": 1, "description": "Name of the task, as in the source lm_eval."},
            "scores": {
                "type": "array",
                "items": {"type": "string", "minLength": 1},
                "minItems": 1,
                "uniqueItems": True,
                "description": "Names of the task's metrics; each must be a mean over documents, e.g. exact_match.",
            },
            "filter": {
                "type": ["string", "null"],
                "default": None,
                "description": "The task's filter of the answers, e.g. flexible-extract of gsm8k. null: its first one.",
            },
            "include": {
                "type": ["string", "null"],
                "format": "path",
                "default": None,
                "description": "A folder with your own tasks, as in the source lm_eval.",
            },
        },
        required=("task", "scores"),
        example=ComponentExample(
            lambda folder: _write_example_task(folder),
            data={"document": {"question": "Where?", "answer": "the cat sat on the mat"}},
            needs=("lm_eval",),
        ),
    ),
}


class LmEvalScores(RatioMetric):
    """The scores that lm-evaluation-harness gives to the same answers.

    The rows come from the source `lm_eval` of the same task, which keeps the column `document`. An answer is cut at the
    task's `until`, filtered, and scored by the task. Answers are the same as that package's if the suite has
    `"plain": true` and the task's `max_gen_toks` as `max_new_tokens`.

    Statistics of each score: its value for the document, 1.
    """

    requires = "answer"

    def __init__(self, task: str, scores: Sequence[str], filter: str | None, include: str | None) -> None:
        """Create the metric. Nothing is loaded.

        Args:
            task: Name of a generation task.
            scores: Names of its metrics.
            filter: Name of one of its filters; None: the first.
            include: A folder with further tasks. Only it is searched.
        """
        self.score_names = tuple(scores)
        self._task_name, self._filter_name, self._include = task, filter, include

    def signature(self) -> str:
        """Return task, filter and the version of the package."""
        try:
            package = metadata.version("lm_eval")
        except metadata.PackageNotFoundError:  # check_available refuses to go on
            package = "missing"
        return f"lm_eval|task:{self._task_name}|filter:{self._filter_name or 'first'}|package:{package}|version:1"

    def check_available(self) -> None:
        """Load the task and check filter and scores.

        Raises:
            HarnessError: The package, the task, the filter or a score is missing, or a score is not a mean over
                documents of which more is better.
        """
        means, better = _mean_scores(self._task), self._task.higher_is_better()
        for name in self.score_names:
            if name not in means:
                what = f"the task has no metric '{name}' that is a mean over documents"
                raise HarnessError(
                    self._location, what, f"scores: one of {', '.join(means) or 'none: choose another task'}"
                )
            if not better.get(name, True):
                raise HarnessError(
                    self._location, f"a lower '{name}' is better, which is not supported", "leave it out"
                )
        _ = self._filter

    def statistics(self, item: Item) -> dict[str, tuple[float, ...]]:
        """Return the value of each score for the item's answer.

        Raises:
            HarnessError: The item has no answer or no document, or the task does not score it.
        """
        from lm_eval.api.instance import Instance

        if item.answer is None:
            raise HarnessError(f"item {item.id}", "has no answer to score", "generate answers for its suite first")
        document = item.data.get("document")
        if document is None:
            hint = 'set "keep": ["document"] in the source lm_eval'
            raise HarnessError(f"item {item.id}", "has no column 'document'", hint)
        answer = _cut(item.answer, self._task.config.generation_kwargs.get("until") or ())
        request = Instance(
            request_type="generate_until", doc=document, arguments=(item.prompt, {}), idx=0, resps=[answer]
        )
        self._filter.apply([request])
        values = self._task.process_results(document, [request.filtered_resps[self._filter.name]])
        return {name: (float(values[name]), 1.0) for name in self.score_names}

    @property
    def _location(self) -> str:
        return f"lm_eval:{self._task_name}"

    @cached_property
    def _task(self) -> Any:
        task = load_task(self._task_name, self._include)
        if task.OUTPUT_TYPE != "generate_until":
            what = f"is a task of the type {task.OUTPUT_TYPE}, which has no generated answers"
            raise HarnessError(self._location, what, "use the metric multiple_choice or bits_per_byte")
        return task

    @cached_property
    def _filter(self) -> Any:
        filters = {one.name: one for one in self._task._filters}  # no public access
        if self._filter_name is None:
            return next(iter(filters.values()))
        if self._filter_name not in filters:
            what = f"the task has no filter '{self._filter_name}'"
            raise HarnessError(self._location, what, f"filter: one of {', '.join(filters)}")
        return filters[self._filter_name]


def _write_example_task(folder: Path) -> dict[str, Any]:
    """Write a task with one document, and return the options that name it."""
    rows = folder / "example.jsonl"
    rows.write_text(json.dumps({"question": "Where?", "answer": "the cat sat on the mat"}) + "\n", encoding="utf-8")
    task = {
        "task": "example", "dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(rows)}},
        "test_split": "test", "output_type": "generate_until", "doc_to_text": "{{question}}",
        "doc_to_target": "{{answer}}", "generation_kwargs": {"until": ["\n"]},
        "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
    }  # fmt: skip
    (folder / "example.yaml").write_text(json.dumps(task), encoding="utf-8")  # JSON is YAML
    return {"task": "example", "scores": ["exact_match"], "include": str(folder)}


def _mean_scores(task: Any) -> list[str]:
    """Return the names of the task's metrics whose value is the mean over documents."""
    from lm_eval.api.metrics import mean

    return [name for name, aggregate in task.aggregation().items() if aggregate is mean]


def _cut(answer: str, until: str | Sequence[str]) -> str:
    """Return the text before the first of the strings, as lm-evaluation-harness cuts it."""
    for end in [until] if isinstance(until, str) else until:
        if end:
            answer = answer.split(end)[0]
    return answer
