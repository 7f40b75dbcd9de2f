"""Answer normalization before a comparison: the steps of SQuAD and of HF `exact_match`, by name."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Sequence
from typing import Any

from harness import HarnessError, Item
from harness_metrics.base import MeanMetric

_ARTICLES = re.compile(r"\b(a|an|the)\b", re.IGNORECASE)


def _remove_punctuation(text: str) -> str:
    # SQuAD removes the ASCII marks; this removes every script's punctuation. Symbols such as `€` carry meaning: kept.
    return "".join(c for c in text if not (unicodedata.category(c)[0] == "P" or c in "$+<=>^`|~"))


def _remove_numbers(text: str) -> str:
    return "".join(c for c in text if unicodedata.category(c) != "Nd")


_STEPS: dict[str, Callable[[str], str]] = {
    "nfkc": lambda text: unicodedata.normalize("NFKC", text),
    "case": str.casefold,
    "punctuation": _remove_punctuation,
    "articles": lambda text: _ARTICLES.sub(" ", text),
    "numbers": _remove_numbers,
}
"""Step -> function, in the order in which they are applied."""

NORMALIZE_OPTION: dict[str, Any] = {
    "type": "array",
    "items": {"enum": list(_STEPS)},
    "uniqueItems": True,
    "default": ["case", "punctuation", "articles"],
    "description": "What is ignored when texts are compared: `case`, `punctuation`, English `articles`, `numbers`, and "
    "`nfkc` (full-width and other compatibility forms). White space is always collapsed.",
}
"""The JSON Schema of a metric's option `normalise`."""

LANG_OPTION: dict[str, Any] = {
    "type": "string",
    "pattern": "^(auto|[a-z]{2,3})$",
    "default": "auto",
    "description": "Language of the references (ISO 639, e.g. zh). auto: the suite's lang, else by script.",
}
"""The JSON Schema of a metric's option `lang`."""

EXTRACT_OPTION: dict[str, Any] = {
    "type": ["string", "null"],
    "format": "regex",
    "default": None,
    "description": "A regular expression. Only its last match in the answer is compared (its first group, if it has "
    "one), likewise in the reference where it matches. An answer without a match is wrong and counted as unparsed. "
    "null: the whole answer.",
}
"""The JSON Schema of a metric's option `extract`."""


class AnswerExtractor:
    """Extracts the part of a text that is compared."""

    def __init__(self, metric: str, pattern: str | None) -> None:
        """Compile the pattern.

        Args:
            metric: The metric's name in the spec, for errors.
            pattern: A regular expression, see `EXTRACT_OPTION`; None: the whole text is compared.

        Raises:
            HarnessError: The pattern is not a regular expression.
        """
        self._pattern = None if pattern is None else compile_pattern(f"metrics.{metric}.extract", pattern)

    def __call__(self, text: str) -> str | None:
        """Return the compared part of the text, stripped, or None where nothing matches."""
        if self._pattern is None:
            return text
        last_match = None
        for last_match in self._pattern.finditer(text):  # noqa: B007 (the last one counts)
            pass
        if last_match is None:
            return None
        return (last_match.group(1 if self._pattern.groups else 0) or "").strip()

    def signature_suffix(self) -> str:
        """Return the part of a signature that names the pattern; empty without one."""
        return "" if self._pattern is None else f"|extract:{self._pattern.pattern!r}"


class NormalizedMetric(MeanMetric):
    """A metric that compares normalized parts of answer and reference."""

    def __init__(self, normalise: Sequence[str], extract: str | None, lang: str) -> None:
        """Create the metric.

        Args:
            normalise: What is ignored, see `NORMALIZE_OPTION`.
            extract: What is compared, see `EXTRACT_OPTION`.
            lang: The language of the references: English articles are words like any other in another language.
        """
        self._steps = applicable_steps(normalise, lang)
        self._extract = AnswerExtractor(self.score_names[0], extract)

    def is_parsed(self, item: Item) -> bool:
        """Return whether `extract` matches in the answer."""
        return self._extract(item.answer or "") is not None

    def _extract_both(self, answer: str, reference: str) -> tuple[str, str] | None:
        """Return the compared parts of answer and reference, or None for an answer without a match."""
        answer_part, reference_part = self._extract(answer), self._extract(reference)
        if answer_part is None:
            return None
        return answer_part, reference if reference_part is None else reference_part


def compile_pattern(where: str, pattern: str) -> re.Pattern[str]:
    """Return the compiled regular expression.

    Args:
        where: The option, for errors.
        pattern: The regular expression.

    Raises:
        HarnessError: It is not a regular expression.
    """
    try:
        return re.compile(pattern)
    except re.error as error:
        raise HarnessError(where, f"{pattern!r} is not a regular expression: {error}", "fix it") from error


def applicable_steps(steps: Sequence[str], lang: str) -> tuple[str, ...]:
    """Return the steps that apply to a language: `a` and `the` are articles in English alone."""
    return tuple(step for step in steps if step != "articles" or lang in ("auto", "en", "eng"))


def normalize_text(text: str, steps: Sequence[str]) -> str:
    """Return the text after the named steps, in their fixed order, with white space collapsed."""
    for name, step in _STEPS.items():
        if name in steps:
            text = step(text)
    return " ".join(text.split())


def format_steps(steps: Sequence[str]) -> str:
    """Return the steps as written in a signature, e.g. `case+punctuation`; `none` without any."""
    return "+".join(name for name in _STEPS if name in steps) or "none"


def equal_ignoring_whitespace(answer: str, reference: str) -> bool:
    """Return whether answer and reference are equal but for white space; a blank answer never is.

    This decides for texts that normalization empties, e.g. `。`.
    """
    return answer.strip() != "" and answer.split() == reference.split()
