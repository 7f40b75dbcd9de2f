"""A metric whose values are expensive: they are computed at the same time, and stored one by one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from difflib import SequenceMatcher
from typing import ClassVar, Literal

from harness import Item, Metric

CONCURRENCY = 4
"""Number of items at the same time."""


class Closeness(Metric):
    """Mean similarity of answer and reference by characters, 0 to 1 (`difflib`)."""

    requires: ClassVar[Literal["answer"]] = "answer"
    score_names = ("closeness",)

    def signature(self) -> str:
        """Return the measure, and the version."""
        return "closeness|ratio:difflib|version:1"

    def prepare(self, items: Sequence[Item]) -> Iterator[tuple[Item, float]]:
        """Yield each item with its similarity, in the order in which they are ready."""
        with ThreadPoolExecutor(CONCURRENCY) as pool:
            items_of = {pool.submit(similarity, item): item for item in items}
            for future in as_completed(items_of):
                yield items_of[future], future.result()

    def statistics(self, item: Item) -> dict[str, tuple[float, ...]]:
        """Return the similarity, and 1."""
        return {"closeness": (item.computed, 1.0)}

    def aggregate(self, name: str, total: Sequence[float]) -> float:
        """Return the mean similarity."""
        similarities, count = total
        return similarities / count


def similarity(item: Item) -> float:
    """Return the similarity of the item's answer and reference, 0 to 1."""
    return SequenceMatcher(None, item.answer or "", item.reference).ratio()
