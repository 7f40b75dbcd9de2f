"""How answers are made alike before they are compared: the steps of SQuAD and of HF `exact_match`, by name."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Sequence
from typing import Any

_ARTICLES = re.compile(r"\b(a|an|the)\b", re.IGNORECASE)


def _without_punctuation(text: str) -> str:
    # Beyond the ASCII marks of SQuAD, every script's punctuation; symbols such as `€` stay, as they carry meaning.
    return "".join(c for c in text if not (unicodedata.category(c)[0] == "P" or c in "$+<=>^`|~"))


def _without_numbers(text: str) -> str:
    return "".join(c for c in text if unicodedata.category(c) != "Nd")


_STEPS: dict[str, Callable[[str], str]] = {
    "nfkc": lambda text: unicodedata.normalize("NFKC", text),
    "case": str.casefold,
    "punctuation": _without_punctuation,
    "articles": lambda text: _ARTICLES.sub(" ", text),
    "numbers": _without_numbers,
}
"""Step -> function, in the order in which they are applied."""

OPTION: dict[str, Any] = {
    "type": "array",
    "items": {"enum": list(_STEPS)},
    "uniqueItems": True,
    "default": ["case", "punctuation", "articles"],
    "description": "What is ignored when texts are compared: `case`, `punctuation`, English `articles`, `numbers`, and "
    "`nfkc` (full-width and other compatibility forms). White space is always collapsed.",
}
"""The JSON schema of a metric's option `normalise`."""


def normalise(text: str, steps: Sequence[str]) -> str:
    """The text after the named steps, in their fixed order, with white space collapsed."""
    for name, step in _STEPS.items():
        if name in steps:
            text = step(text)
    return " ".join(text.split())


def label(steps: Sequence[str]) -> str:
    """The steps as they stand in a signature, e.g. `case+punctuation`; `none` without any."""
    return "+".join(name for name in _STEPS if name in steps) or "none"
