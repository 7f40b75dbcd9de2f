"""How long answers are beside their references."""

from __future__ import annotations

from collections.abc import Sequence

from harness_metrics.base import TextMetric
from harness_metrics.tokenization import TOKENIZATION_VERSION, tokenize_words


class LengthRatio(TextMetric):
    """Words of the answers / words of the references, both summed: 1 is as long. Neither direction is better as such.

    To be read beside other scores: judges prefer longer answers, and BLEU punishes shorter ones. With several
    references the one nearest in length counts.

    Statistics: words of the answer, words of the reference.
    """

    score_names = ("length_ratio",)
    higher_is_better = None
    citation = "Papineni et al. (2002), BLEU, https://aclanthology.org/P02-1040"

    def signature(self) -> str:
        return f"length_ratio|tok:{TOKENIZATION_VERSION}|version:1"

    def answer_statistics(self, answer: str, references: Sequence[str]) -> dict[str, tuple[float, ...]]:
        ours = len(tokenize_words(answer))
        theirs = min(
            (len(tokenize_words(reference)) for reference in references),
            key=lambda length: (abs(length - ours), length),
        )
        return {"length_ratio": (float(ours), float(theirs))}

    def aggregate(self, name: str, total: Sequence[float]) -> float:
        ours, theirs = total
        return ours / theirs if theirs else float("nan")

    def is_ratio(self, name: str) -> bool:
        return True
