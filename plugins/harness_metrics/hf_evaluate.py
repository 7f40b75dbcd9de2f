"""Conversion of a text metric to a metric of Hugging Face `evaluate`, without hub access or files.

`evaluate.load` always contacts the hub or GitHub; an instance of a subclass does not.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Protocol

import datasets
import evaluate

from harness import HarnessError

_INPUTS_DESCRIPTION = """
Args:
    predictions: list of answers, one string each.
    references: list of references, for each answer a string or a list of strings.
Returns:
    dict: score name -> value over all answers.
"""


class ScoresAnswers(Protocol):
    """What this module uses of a text metric; `base` imports this module, so it cannot name the class."""

    citation: ClassVar[str]
    score_names: tuple[str, ...]

    def signature(self) -> str:
        """Return the metric's options."""

    def answer_statistics(self, answer: str, references: Sequence[str]) -> dict[str, tuple[float, ...]]:
        """Return score name -> statistics of one answer."""

    def aggregate(self, name: str, total: Sequence[float]) -> float:
        """Return the score of summed statistics."""


class _HfEvaluateMetric(evaluate.Metric):  # type: ignore[misc, unused-ignore]
    """An `evaluate.Metric` that returns the scores of a metric of this package."""

    harness_metric: ScoresAnswers

    def _info(self) -> evaluate.MetricInfo:
        metric, text = self.harness_metric, datasets.Value("string")
        summary = (type(metric).__doc__ or "").strip().splitlines()[0]
        return evaluate.MetricInfo(
            description=f"{summary} Signature: {metric.signature()}",
            citation=metric.citation,
            inputs_description=_INPUTS_DESCRIPTION,
            features=[
                datasets.Features({"predictions": text, "references": datasets.Sequence(text)}),
                datasets.Features({"predictions": text, "references": text}),
            ],
        )

    def _infer_feature_from_batch(self, batch: Mapping[str, Sequence[Any]]) -> datasets.Features:
        # `evaluate` reads the first element here, before it calls `_compute`.
        if not all(len(column) for column in batch.values()):
            raise _no_answers_error(self.name)
        return super()._infer_feature_from_batch(batch)

    def _compute(self, predictions: Sequence[str], references: Sequence[str | Sequence[str]]) -> dict[str, float]:
        totals: dict[str, list[float]] = {}
        for answer, reference in zip(predictions, references, strict=True):
            answer_references = [reference] if isinstance(reference, str) else list(reference)
            if not answer_references:
                raise HarnessError(self.name, "an answer has no reference", "give each answer at least one")
            for name, statistics in self.harness_metric.answer_statistics(answer, answer_references).items():
                total = totals.setdefault(name, [0.0] * len(statistics))
                totals[name] = [x + y for x, y in zip(total, statistics, strict=True)]
        return {name: self.harness_metric.aggregate(name, totals[name]) for name in self.harness_metric.score_names}


def _no_answers_error(name: str) -> HarnessError:
    return HarnessError(name, "no answers to score: predictions or references are empty", "give at least one of each")


def to_hf_evaluate(metric: ScoresAnswers) -> evaluate.Metric:
    """Return the metric as an `evaluate.Metric`.

    Its `compute(predictions=, references=)` equals `metric.aggregate` of the summed statistics. It raises HarnessError
    if there are no answers, or an answer has no reference.
    """
    metric_class = type(
        type(metric).__name__, (_HfEvaluateMetric,), {"harness_metric": metric, "__doc__": type(metric).__doc__}
    )
    return metric_class(keep_in_memory=True)
