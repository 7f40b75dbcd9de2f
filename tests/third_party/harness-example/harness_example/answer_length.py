"""A metric of the length of the answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

from harness import Item, Metric


class AnswerLength(Metric):
    """Mean number of words, separated by white space."""

    requires: ClassVar[Literal["answer", "likelihood"]] = "answer"
    score_names = ("words",)

    def signature(self) -> str:
        """Return how words are split, and the version."""
        return "answer_length|split:whitespace|version:1"

    def statistics(self, item: Item) -> dict[str, tuple[float, ...]]:
        """Return the number of words, and 1."""
        return {"words": (float(len((item.answer or "").split())), 1.0)}

    def aggregate(self, name: str, total: Sequence[float]) -> float:
        """Return the mean number of words."""
        words, count = total
        return words / count
