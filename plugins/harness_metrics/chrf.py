"""Corpus chrF, by sacrebleu (Popović, 2015, aclanthology W15-3049; chrF++ 2017, W17-4770)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from importlib.metadata import version
from typing import TYPE_CHECKING

from harness import Component
from harness_metrics.base import LOWERCASE_OPTION, TextMetric

if TYPE_CHECKING:
    from sacrebleu.metrics.chrf import CHRF

COMPONENTS: dict[str, Component] = {
    "chrf": Component(
        summary="Corpus chrF of the answers, 0 to 100, by sacrebleu; needs no tokenizer.",
        factory="harness_metrics.chrf:Chrf",
        options={
            "word_order": {
                "type": "integer",
                "minimum": 0,
                "maximum": 4,
                "default": 0,
                "description": "Also count n-grams of words up to this order; 2 is chrF++.",
            },
            "lowercase": LOWERCASE_OPTION,
        },
    ),
}


class Chrf(TextMetric):
    """Corpus chrF (F2 of character n-grams), from 0 to 100, equal to sacrebleu's `corpus_score`.

    Statistics: for each order, n-grams of the answer, of the reference, and of both.
    """

    compares_wording = True
    score_names = ("chrf",)
    score_range = 100.0
    citation = "Popović (2015), chrF: character n-gram F-score, https://aclanthology.org/W15-3049"

    def __init__(self, word_order: int, lowercase: bool) -> None:
        """Create the metric.

        Args:
            word_order: Also count n-grams of words up to this order; 2 is chrF++.
            lowercase: Compare without case.
        """
        self._word_order, self._lowercase = word_order, lowercase

    @cached_property
    def _scorer(self) -> CHRF:
        from sacrebleu.metrics.chrf import CHRF

        return CHRF(word_order=self._word_order, lowercase=self._lowercase)

    def signature(self) -> str:
        """Return sacrebleu's signature."""
        case = "lc" if self._lowercase else "mixed"
        return f"chrf|nrefs:1|case:{case}|eff:yes|nc:6|nw:{self._word_order}|space:no|version:{version('sacrebleu')}"

    def answer_statistics(self, answer: str, references: Sequence[str]) -> dict[str, tuple[float, ...]]:
        """Return the n-gram counts of one answer."""
        # sacrebleu has no public access to the counts of a segment; the tests compare these with `corpus_score`.
        (counts,) = self._scorer._extract_corpus_statistics([answer], [[reference] for reference in references])
        return {"chrf": tuple(map(float, counts))}

    def aggregate(self, name: str, total: Sequence[float]) -> float:
        """Return the corpus chrF of the summed counts."""
        return self._scorer._compute_score_from_stats([int(count) for count in total]).score
