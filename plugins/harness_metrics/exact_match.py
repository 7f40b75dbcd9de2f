"""The share of answers that are the reference."""

from __future__ import annotations

from collections.abc import Sequence

from harness_metrics.normalise import label, normalise
from harness_metrics.text import MeanMetric


class ExactMatch(MeanMetric):
    """Share of answers, from 0 to 1, that equal a reference after normalisation.

    normalise: what is ignored (see `harness_metrics.normalise`).
    An answer of which nothing is left matches only where it was the very reference.
    """

    names = ("exact_match",)
    citation = "Rajpurkar et al. (2016), SQuAD, https://aclanthology.org/D16-1264"

    def __init__(self, normalise: Sequence[str]) -> None:
        self._steps = tuple(normalise)

    def signature(self) -> str:
        return f"exact_match|norm:{label(self._steps)}|version:1"

    def measure(self, answer: str, references: Sequence[str]) -> dict[str, tuple[float, ...]]:
        return {"exact_match": (float(any(self._same(answer, reference) for reference in references)), 1.0)}

    def _same(self, answer: str, reference: str) -> bool:
        short = normalise(answer, self._steps)
        return short == normalise(reference, self._steps) and (short != "" or same_raw(answer, reference))


def same_raw(answer: str, reference: str) -> bool:
    """Whether a text that normalisation empties, e.g. `。`, still is the reference; a blank answer never is."""
    return answer.strip() != "" and answer.split() == reference.split()
