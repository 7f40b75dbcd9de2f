"""How answers are made alike before they are compared: the steps of SQuAD and of HF `exact_match`, by name."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Sequence
from typing import Any

from harness import HarnessError

_ARTICLES = re.compile(r"\b(a|an|the)\b", re.IGNORECASE)


def _remove_punctuation(text: str) -> str:
    # Beyond the ASCII marks of SQuAD, every script's punctuation; symbols such as `€` stay, as they carry meaning.
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
"""The JSON schema of a metric's option `normalise`."""


LANG_OPTION: dict[str, Any] = {
    "type": "string",
    "pattern": "^(auto|[a-z]{2,3})$",
    "default": "auto",
    "description": "Language of the references (ISO 639, e.g. zh). auto: the suite's lang, else by script.",
}
"""The JSON schema of a metric's option `lang`."""

EXTRACT_OPTION: dict[str, Any] = {
    "type": ["string", "null"],
    "format": "regex",
    "default": None,
    "description": "A regular expression; only what its last match in the answer holds is compared (its first group, "
    "if it has one), likewise in the reference where it matches. An answer without a match is wrong and counted as "
    "unparsed. null: the whole answer.",
}
"""The JSON schema of a metric's option `extract`."""


class AnswerExtractor:
    """Takes what is to be compared out of a text. pattern: see `EXTRACT_OPTION`. Raises HarnessError for a bad one."""

    def __init__(self, metric: str, pattern: str | None) -> None:
        self._pattern = None if pattern is None else compile_pattern(f"metrics.{metric}.extract", pattern)

    def __call__(self, text: str) -> str | None:
        """The part of the text, stripped; None where there is no match."""
        if self._pattern is None:
            return text
        last = None
        for last in self._pattern.finditer(text):  # noqa: B007 (the last one counts)
            pass
        if last is None:
            return None
        return (last.group(1 if self._pattern.groups else 0) or "").strip()

    def signature_suffix(self) -> str:
        """What stands in a signature for it."""
        return "" if self._pattern is None else f"|extract:{self._pattern.pattern!r}"


def compile_pattern(where: str, pattern: str) -> re.Pattern[str]:
    """The regular expression. Raises HarnessError when it is none."""
    try:
        return re.compile(pattern)
    except re.error as error:
        raise HarnessError(where, f"{pattern!r} is no regular expression: {error}", "mend it") from error


def applicable_steps(steps: Sequence[str], lang: str) -> tuple[str, ...]:
    """The steps that make sense in a language: `a` and `the` are articles in English alone."""
    return tuple(step for step in steps if step != "articles" or lang in ("auto", "en", "eng"))


def normalize_text(text: str, steps: Sequence[str]) -> str:
    """The text after the named steps, in their fixed order, with white space collapsed."""
    for name, step in _STEPS.items():
        if name in steps:
            text = step(text)
    return " ".join(text.split())


def format_steps(steps: Sequence[str]) -> str:
    """The steps as they stand in a signature, e.g. `case+punctuation`; `none` without any."""
    return "+".join(name for name in _STEPS if name in steps) or "none"
