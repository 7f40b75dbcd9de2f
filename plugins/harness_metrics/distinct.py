"""How much an answer repeats itself."""

from __future__ import annotations

from collections.abc import Sequence

from harness_metrics.base import TextMetric
from harness_metrics.tokenization import TOKENIZATION_VERSION, tokenize_words


class Distinct(TextMetric):
    """Share of n-grams of words that are no repetition within their answer, from 0 to 1: `distinct1`, `distinct2` …

    Different n-grams of an answer / its n-grams, both summed over the answers. It falls when a model loops. Li et al.
    (2016, arXiv:1510.03055) count different n-grams over all answers together, which falls with the number of answers
    whatever the model does, and has no value an item to draw an interval from.
    orders: the lengths n. NaN where no answer has n words.

    Statistics of each: different n-grams, n-grams.
    """

    citation = "after Li et al. (2016), A Diversity-Promoting Objective Function, https://aclanthology.org/N16-1014"

    def __init__(self, orders: Sequence[int]) -> None:
        self._orders = tuple(orders)
        self.score_names = tuple(f"distinct{order}" for order in self._orders)

    def signature(self) -> str:
        return f"distinct|within:answer|tok:{TOKENIZATION_VERSION}|version:1"

    def answer_statistics(self, answer: str, references: Sequence[str]) -> dict[str, tuple[float, ...]]:
        found = tokenize_words(answer)
        made: dict[str, tuple[float, ...]] = {}
        for order, name in zip(self._orders, self.score_names, strict=True):
            grams = [tuple(found[start : start + order]) for start in range(len(found) - order + 1)]
            made[name] = (float(len(set(grams))), float(len(grams)))
        return made

    def aggregate(self, name: str, total: Sequence[float]) -> float:
        different, grams = total
        return different / grams if grams else float("nan")

    def is_ratio(self, name: str) -> bool:
        return True
