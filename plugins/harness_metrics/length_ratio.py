"""Length of the answers relative to their references."""

from __future__ import annotations

from collections.abc import Sequence

from harness import Component
from harness_metrics.base import RatioMetric, TextMetric
from harness_metrics.tokenization import TOKENIZATION_VERSION, tokenize_words

COMPONENTS: dict[str, Component] = {
    "length_ratio": Component(
        summary="Words of the answers over words of the references; 1 is equally long.",
        factory="harness_metrics.length_ratio:LengthRatio",
    ),
}


class LengthRatio(RatioMetric, TextMetric):
    """Words of the answers / words of the references, both summed: 1 is equally long. Neither direction is better.

    Read it together with other scores: judges prefer longer answers, and BLEU penalizes shorter ones. With several
    references the one closest in length counts.

    Statistics: words of the answer, words of the reference.
    """

    score_names = ("length_ratio",)
    higher_is_better = None
    citation = "Papineni et al. (2002), BLEU, https://aclanthology.org/P02-1040"

    def signature(self) -> str:
        """Return word tokenization and version."""
        return f"length_ratio|tok:{TOKENIZATION_VERSION}|version:1"

    def answer_statistics(self, answer: str, references: Sequence[str]) -> dict[str, tuple[float, ...]]:
        """Return the words of the answer and of the reference closest in length."""
        answer_words = len(tokenize_words(answer))
        reference_words = min(
            (len(tokenize_words(reference)) for reference in references),
            key=lambda length: (abs(length - answer_words), length),
        )
        return {"length_ratio": (float(answer_words), float(reference_words))}
