"""Whether answers have a form that can be written as a regular expression."""

from __future__ import annotations

from collections.abc import Sequence

from harness_metrics.base import MeanMetric
from harness_metrics.normalization import compile_pattern


class Regex(MeanMetric):
    """Share of answers, from 0 to 1, in which the pattern is found; the reference is not looked at.

    pattern: of Python's `re`; flags stand in it, e.g. `(?i)`. whole: the stripped answer must match from end to end.
    """

    score_names = ("regex",)
    citation = "the pattern is the spec's own"

    def __init__(self, pattern: str, whole: bool) -> None:
        self._pattern, self._whole = compile_pattern("metrics.regex.pattern", pattern), whole

    def signature(self) -> str:
        return f"regex|pattern:{self._pattern.pattern!r}|whole:{'yes' if self._whole else 'no'}|version:1"

    def answer_statistics(self, answer: str, references: Sequence[str]) -> dict[str, tuple[float, ...]]:
        found = self._pattern.fullmatch(answer.strip()) if self._whole else self._pattern.search(answer)
        return {"regex": (float(found is not None), 1.0)}
