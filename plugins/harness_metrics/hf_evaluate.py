"""Turns a metric of text into a metric of Hugging Face's package `evaluate`, with no hub and no files.

`evaluate.load` always asks the hub or GitHub; a subclass that is made directly does not.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import datasets
import evaluate

from harness import HarnessError
from harness_metrics.base import TextMetric

_INPUTS_DESCRIPTION = """
Args:
    predictions: list of answers, one string each.
    references: list of references, for each answer a string or a list of strings.
Returns:
    dict: score name -> value over all answers.
"""


class _HfEvaluateMetric(evaluate.Metric):
    """An `evaluate.Metric` whose numbers come from one of ours."""

    harness_metric: TextMetric

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
        # `evaluate` looks at the first element here, before anything of ours is called.
        if not all(len(column) for column in batch.values()):
            raise _no_answers_error(self.name)
        return super()._infer_feature_from_batch(batch)

    def _compute(self, predictions: Sequence[str], references: Sequence[str | Sequence[str]]) -> dict[str, float]:
        totals: dict[str, list[float]] = {}
        for answer, reference in zip(predictions, references, strict=True):
            several = [reference] if isinstance(reference, str) else list(reference)
            if not several:
                raise HarnessError(self.name, "an answer has no reference", "give each answer at least one")
            for name, statistics in self.harness_metric.answer_statistics(answer, several).items():
                before = totals.setdefault(name, [0.0] * len(statistics))
                totals[name] = [x + y for x, y in zip(before, statistics, strict=True)]
        return {name: self.harness_metric.aggregate(name, totals[name]) for name in self.harness_metric.score_names}


def _no_answers_error(name: str) -> HarnessError:
    return HarnessError(name, "no answers to score: predictions or references are empty", "give at least one of each")


def to_hf_evaluate(metric: TextMetric) -> evaluate.Metric:
    """The metric as an `evaluate.Metric`; its `compute(predictions=, references=)` equals `metric.aggregate`.

    Raises HarnessError from `compute` when there are no answers, or an answer has no reference.
    """
    kind = type(
        type(metric).__name__, (_HfEvaluateMetric,), {"harness_metric": metric, "__doc__": type(metric).__doc__}
    )
    return kind(keep_in_memory=True)
