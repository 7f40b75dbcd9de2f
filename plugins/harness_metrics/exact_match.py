"""Answers that equal the reference."""

from __future__ import annotations

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

COMPONENTS: dict[str, Component] = {
    "exact_match": Component(
        summary="Fraction of answers that equal the reference, 0 to 1.",
        factory="harness_metrics.exact_match:ExactMatch",
        options={"normalise": NORMALIZE_OPTION, "extract": EXTRACT_OPTION, "lang": LANG_OPTION},
    ),
}


class ExactMatch(NormalizedMetric):
    """Fraction of answers, 0 to 1, that equal a reference after normalization.

    An answer that normalization empties matches only if it equals the reference before normalization.
    """

    score_names: tuple[str, ...] = ("exact_match",)
    citation = "Rajpurkar et al. (2016), SQuAD, https://aclanthology.org/D16-1264"

    def signature(self) -> str:
        """Return normalization steps, pattern and version."""
        return f"exact_match|norm:{format_steps(self._steps)}{self._extract.signature_suffix()}|version:1"

    def answer_statistics(self, answer: str, references: Sequence[str]) -> dict[str, tuple[float, ...]]:
        """Return whether the answer equals one of the references."""
        return {"exact_match": (float(any(self._is_match(answer, reference) for reference in references)), 1.0)}

    def _is_match(self, answer: str, reference: str) -> bool:
        parts = self._extract_both(answer, reference)
        if parts is None:
            return False
        normalized_answer, normalized_reference = (normalize_text(part, self._steps) for part in parts)
        return normalized_answer == normalized_reference and (
            normalized_answer != "" or equal_ignoring_whitespace(*parts)
        )
