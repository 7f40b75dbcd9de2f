"""A metric whose arguments are a column of each row, as in IFEval (arXiv:2311.07911)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

from harness import HarnessError, Item, Metric

CHECKS = {
    "contains": lambda answer, text: text in answer,
    "max_words": lambda answer, count: len(answer.split()) <= count,
}
"""Type of a constraint -> (answer, value) -> whether the answer satisfies it."""


class Constraints(Metric):
    """Fraction of the constraints that the answers satisfy.

    A row has them in its column `constraints`: `[{"type": "max_words", "value": 5}]`. Its source keeps that column.
    """

    requires: ClassVar[Literal["answer"]] = "answer"
    score_names = ("constraints",)

    def signature(self) -> str:
        """Return the types of constraints, and the version."""
        return f"constraints|types:{'+'.join(sorted(CHECKS))}|version:1"

    def statistics(self, item: Item) -> dict[str, tuple[float, ...]]:
        """Return the number of satisfied constraints, and of all."""
        constraints = item.data.get("constraints")
        if constraints is None:
            hint = 'add it to the row, and "keep": ["constraints"] to the source'
            raise HarnessError(f"item {item.id}", "has no column 'constraints'", hint)
        satisfied = [CHECKS[each["type"]](item.answer or "", each["value"]) for each in constraints]
        return {"constraints": (float(sum(satisfied)), float(len(satisfied)))}

    def aggregate(self, name: str, total: Sequence[float]) -> float:
        """Return the fraction of satisfied constraints."""
        satisfied, count = total
        return satisfied / count if count else float("nan")

    def is_ratio(self, name: str) -> bool:
        """Return True: the interval has a closed form."""
        return True
