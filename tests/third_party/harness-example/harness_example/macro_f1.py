"""A score that is not a function of sums over the items."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

from harness import Item, Metric


class MacroF1(Metric):
    """Mean over the labels of the F1 of answers that are labels, 0 to 1."""

    requires: ClassVar[Literal["answer"]] = "answer"
    score_names = ("macro_f1",)

    def __init__(self, labels: Sequence[str]) -> None:
        """Create the metric.

        Args:
            labels: The labels. Any other answer is wrong.
        """
        self._labels = list(labels)

    def signature(self) -> str:
        """Return labels and version."""
        return f"macro_f1|labels:{'+'.join(self._labels)}|version:1"

    def is_parsed(self, item: Item) -> bool:
        """Return whether the answer is a label."""
        return (item.answer or "").strip() in self._labels

    def statistics(self, item: Item) -> dict[str, tuple[float, ...]]:
        """Return the index of the reference's label and that of the answer's; -1 for any other text."""
        return {"macro_f1": (self._index(item.reference), self._index(item.answer or ""))}

    def aggregate_items(self, name: str, statistics: Any) -> float:
        """Return the macro F1; a label that neither references nor answers have does not count."""
        references, answers = statistics.T  # (items,) each
        scores = []
        for label in range(len(self._labels)):
            both = float(((references == label) & (answers == label)).sum())
            either = float((references == label).sum() + (answers == label).sum())
            scores += [2 * both / either] if either else []
        return sum(scores) / len(scores) if scores else 0.0

    def _index(self, text: str) -> float:
        return float(self._labels.index(text.strip())) if text.strip() in self._labels else -1.0
