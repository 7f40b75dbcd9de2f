"""What the metrics of text share: one answer against one or more references, and the door to HF `evaluate`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

from harness import HarnessError, Item, Metric

if TYPE_CHECKING:
    import evaluate


class TextMetric(Metric):
    """A metric of generated text. An empty answer is an answer: it is scored, never skipped."""

    requires: ClassVar[Literal["answer", "likelihood"]] = "answer"
    citation: ClassVar[str]
    """Where the metric was published, shown by `evaluate`."""

    def answer_statistics(self, answer: str, references: Sequence[str]) -> dict[str, tuple[float, ...]]:
        """Score name -> statistics of one answer against its references, of which there is at least one."""
        raise NotImplementedError

    def statistics(self, item: Item) -> dict[str, tuple[float, ...]]:
        if item.answer is None:
            raise HarnessError(f"item {item.id}", "has no answer to score", "generate answers for its suite first")
        return self.answer_statistics(item.answer, [item.reference])

    def to_hf_evaluate(self) -> evaluate.Metric:
        """This metric as one of the package `evaluate`; its `compute` gives score name -> value.

        Importing `evaluate` brings in torch and takes seconds, so it happens here and not with the module.
        """
        from harness_metrics.hf_evaluate import to_hf_evaluate

        return to_hf_evaluate(self)


class MeanMetric(TextMetric):
    """A metric of text that is the mean of a score in [0, 1] over the items; statistics (score, 1)."""

    def aggregate(self, name: str, total: Sequence[float]) -> float:
        score, count = total
        return score / count if count else float("nan")

    def is_ratio(self, name: str) -> bool:
        return True
