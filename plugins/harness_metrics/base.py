"""Base classes of the built-in metrics, and their conversion to Hugging Face `evaluate`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from harness import HarnessError, Item, Metric

if TYPE_CHECKING:
    import evaluate

LOWERCASE_OPTION: dict[str, Any] = {"type": "boolean", "default": False, "description": "Compare without case."}
"""The JSON Schema of a metric's option `lowercase`."""


class RatioMetric(Metric):
    """A metric that is the first statistic's sum over the second's; NaN where the second is 0."""

    def aggregate(self, name: str, total: Sequence[float]) -> float:
        """Return the ratio of the two summed statistics."""
        numerator, denominator = total
        return numerator / denominator if denominator else float("nan")

    def is_ratio(self, name: str) -> bool:
        """Return True: the interval has a closed form."""
        return True


class TextMetric(Metric):
    """A metric of generated text. An empty answer is scored, never skipped."""

    requires: ClassVar[Literal["answer", "likelihood"]] = "answer"
    citation: ClassVar[str]
    """Where the metric was published, shown by `evaluate`."""

    def answer_statistics(self, answer: str, references: Sequence[str]) -> dict[str, tuple[float, ...]]:
        """Return score name -> statistics of one answer.

        Args:
            answer: The generated text.
            references: The reference texts, at least one.
        """
        raise NotImplementedError

    def statistics(self, item: Item) -> dict[str, tuple[float, ...]]:
        """Return the statistics of the item's answer against its reference.

        Raises:
            HarnessError: The item has no answer.
        """
        if item.answer is None:
            raise HarnessError(f"item {item.id}", "has no answer to score", "generate answers for its suite first")
        return self.answer_statistics(item.answer, references_of(item))

    def to_hf_evaluate(self) -> evaluate.Metric:
        """Return this metric as an `evaluate.Metric`, whose `compute` returns score name -> value.

        Importing `evaluate` imports torch and takes seconds, so it is imported here and not with the module.
        """
        from harness_metrics.hf_evaluate import to_hf_evaluate

        return to_hf_evaluate(self)


def references_of(item: Item) -> list[str]:
    """Return the reference of an item, and those of its column `references` if the source keeps it.

    Raises:
        HarnessError: The column is not a list of texts.
    """
    more = item.data.get("references")
    if more is None:
        return [item.reference]
    if not isinstance(more, list) or not all(isinstance(text, str) for text in more):
        hint = 'write further right responses as ["...", "..."]'
        raise HarnessError(f"item {item.id}", "has 'references' that are not a list of texts", hint)
    return list(dict.fromkeys([item.reference, *more]))


class MeanMetric(RatioMetric, TextMetric):
    """A metric of generated text that is the mean of a score in [0, 1] over the items.

    Statistics: score, 1.
    """


def exp_or_inf(exponent: float) -> float:
    """Return e^exponent, or infinity where a float cannot hold it (above about e^709)."""
    try:
        return math.exp(exponent)
    except OverflowError:
        return math.inf
