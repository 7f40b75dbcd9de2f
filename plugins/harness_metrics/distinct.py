"""Repetition within an answer, as the fraction of distinct n-grams."""

from __future__ import annotations

from collections.abc import Sequence

from harness import Component, ComponentExample
from harness_metrics.base import RatioMetric, TextMetric
from harness_metrics.tokenization import TOKENIZATION_VERSION, tokenize_words

COMPONENTS: dict[str, Component] = {
    "distinct": Component(
        summary="Fraction of n-grams that do not repeat another one of their answer, 0 to 1.",
        factory="harness_metrics.distinct:Distinct",
        options={
            "orders": {
                "type": "array",
                "items": {"type": "integer", "minimum": 1, "maximum": 9},
                "minItems": 1,
                "uniqueItems": True,
                "default": [1, 2],
                "description": "Lengths of the n-grams; each gives a score.",
            }
        },
        example=ComponentExample(better="one two three", worse="one one one"),
    ),
}


class Distinct(RatioMetric, TextMetric):
    """Fraction of n-grams of words that repeat no other of their answer, 0 to 1, e.g. `distinct1` and `distinct2`.

    Distinct n-grams of an answer / its n-grams, both summed over the answers. It falls when a model loops. Li et al.
    (2016, arXiv:1510.03055) count distinct n-grams over all answers together. That falls with the number of answers
    whatever the model does, and has no value per item to compute an interval from.

    Statistics of each: distinct n-grams, n-grams.
    """

    citation = "after Li et al. (2016), A Diversity-Promoting Objective Function, https://aclanthology.org/N16-1014"

    def __init__(self, orders: Sequence[int]) -> None:
        """Create the metric.

        Args:
            orders: The lengths n. A score is NaN where no answer has n words.
        """
        self._orders = tuple(orders)
        self.score_names = tuple(f"distinct{order}" for order in self._orders)

    def signature(self) -> str:
        """Return scope, word tokenization and version."""
        return f"distinct|within:answer|tok:{TOKENIZATION_VERSION}|version:1"

    def answer_statistics(self, answer: str, references: Sequence[str]) -> dict[str, tuple[float, ...]]:
        """Return distinct n-grams and n-grams of one answer, for each order."""
        words = tokenize_words(answer)
        statistics: dict[str, tuple[float, ...]] = {}
        for order, name in zip(self._orders, self.score_names, strict=True):
            ngrams = [tuple(words[start : start + order]) for start in range(len(words) - order + 1)]
            statistics[name] = (float(len(set(ngrams))), float(len(ngrams)))
        return statistics
