"""The share of answers that are the reference."""

from __future__ import annotations

from collections.abc import Sequence

from harness import Item
from harness_metrics.base import MeanMetric
from harness_metrics.normalization import AnswerExtractor, applicable_steps, format_steps, normalize_text


class ExactMatch(MeanMetric):
    """Share of answers, from 0 to 1, that equal a reference after normalisation.

    normalise: what is ignored, extract: what is compared (see `harness_metrics.normalization`). lang: English articles
        are no articles in another language.
    An answer of which nothing is left matches only where it was the very reference.
    """

    score_names = ("exact_match",)
    citation = "Rajpurkar et al. (2016), SQuAD, https://aclanthology.org/D16-1264"

    def __init__(self, normalise: Sequence[str], extract: str | None, lang: str) -> None:
        self._steps = applicable_steps(normalise, lang)
        self._extract = AnswerExtractor(self.score_names[0], extract)

    def signature(self) -> str:
        return f"exact_match|norm:{format_steps(self._steps)}{self._extract.signature_suffix()}|version:1"

    def is_parsed(self, item: Item) -> bool:
        return self._extract(item.answer or "") is not None

    def answer_statistics(self, answer: str, references: Sequence[str]) -> dict[str, tuple[float, ...]]:
        return {"exact_match": (float(any(self._is_match(answer, reference) for reference in references)), 1.0)}

    def _is_match(self, answer: str, reference: str) -> bool:
        found, wanted = self._extract(answer), self._extract(reference)
        if found is None:
            return False
        answer, reference = found, reference if wanted is None else wanted
        short = normalize_text(answer, self._steps)
        return short == normalize_text(reference, self._steps) and (
            short != "" or equal_ignoring_whitespace(answer, reference)
        )


def equal_ignoring_whitespace(answer: str, reference: str) -> bool:
    """Whether a text that normalisation empties, e.g. `。`, still is the reference; a blank answer never is."""
    return answer.strip() != "" and answer.split() == reference.split()
