"""Answers that match a regular expression."""

from __future__ import annotations

from collections.abc import Sequence

from harness import Component, ComponentExample
from harness_metrics.base import MeanMetric
from harness_metrics.normalization import compile_pattern

COMPONENTS: dict[str, Component] = {
    "regex": Component(
        summary="Fraction of answers that contain a match of a regular expression, 0 to 1.",
        factory="harness_metrics.regex:Regex",
        options={
            "pattern": {"type": "string", "format": "regex", "description": "Regular expression of Python's re."},
            "whole": {
                "type": "boolean",
                "default": False,
                "description": "The whole answer must match, without the white space at its ends.",
            },
        },
        required=("pattern",),
        example=ComponentExample({"pattern": "the"}, better="the", worse="a"),
    ),
}


class Regex(MeanMetric):
    """Fraction of answers, 0 to 1, that contain a match of the pattern; the reference is not used."""

    score_names = ("regex",)
    citation = "the pattern is the spec's own"

    def __init__(self, pattern: str, whole: bool) -> None:
        """Create the metric.

        Args:
            pattern: A regular expression of Python's `re`; it may begin with flags, e.g. `(?i)`.
            whole: The whole stripped answer must match.

        Raises:
            HarnessError: The pattern is not a regular expression.
        """
        self._pattern, self._whole = compile_pattern("metrics.regex.pattern", pattern), whole

    def signature(self) -> str:
        """Return pattern, extent and version."""
        return f"regex|pattern:{self._pattern.pattern!r}|whole:{'yes' if self._whole else 'no'}|version:1"

    def answer_statistics(self, answer: str, references: Sequence[str]) -> dict[str, tuple[float, ...]]:
        """Return whether the answer matches."""
        match = self._pattern.fullmatch(answer.strip()) if self._whole else self._pattern.search(answer)
        return {"regex": (float(match is not None), 1.0)}
