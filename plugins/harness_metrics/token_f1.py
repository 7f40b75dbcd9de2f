"""Overlap of the words of answer and reference, as in SQuAD."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from harness import Component
from harness_metrics.normalization import (
    EXTRACT_OPTION,
    LANG_OPTION,
    NORMALIZE_OPTION,
    NormalizedMetric,
    equal_ignoring_whitespace,
    format_steps,
    normalize_text,
)
from harness_metrics.tokenization import TOKENIZATION_VERSION, space_out

COMPONENTS: dict[str, Component] = {
    "token_f1": Component(
        summary="Mean F1 of the words shared with the reference, 0 to 1, as in SQuAD.",
        factory="harness_metrics.token_f1:TokenF1",
        options={"normalise": NORMALIZE_OPTION, "extract": EXTRACT_OPTION, "lang": LANG_OPTION},
    ),
}


class TokenF1(NormalizedMetric):
    """Mean F1 of the words that answer and reference share, 0 to 1 (Rajpurkar et al., 2016, arXiv:1606.05250).

    Words are separated by spaces; scripts without spaces are split into characters. With several references the best
    one counts.
    """

    score_names = ("token_f1",)
    citation = "Rajpurkar et al. (2016), SQuAD, https://aclanthology.org/D16-1264"

    def signature(self) -> str:
        """Return normalization steps, word tokenization, pattern and version."""
        words = f"space+{TOKENIZATION_VERSION}{self._extract.signature_suffix()}"
        return f"token_f1|norm:{format_steps(self._steps)}|tok:{words}|version:1"

    def answer_statistics(self, answer: str, references: Sequence[str]) -> dict[str, tuple[float, ...]]:
        """Return the best F1 over the references."""
        return {"token_f1": (max(self._f1(answer, reference) for reference in references), 1.0)}

    def _f1(self, answer: str, reference: str) -> float:
        parts = self._extract_both(answer, reference)
        if parts is None:
            return 0.0
        answer_words, reference_words = (space_out(normalize_text(part, self._steps)).split() for part in parts)
        if not answer_words and not reference_words:
            return float(equal_ignoring_whitespace(*parts))
        shared = sum((Counter(answer_words) & Counter(reference_words)).values())
        return 2 * shared / (len(answer_words) + len(reference_words))
