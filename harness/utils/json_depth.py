"""JSON with a limit on its nesting, which is the same on every Python version.

The json module reads as deep as the interpreter's stack allows, and that depth differs between versions.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any, TypeVar

MAX_JSON_DEPTH = 100
"""How many brackets of a JSON text may be open at once."""

NESTED_TOO_DEEP = f"brackets are nested more than {MAX_JSON_DEPTH} deep"
HINT_NESTING = f"reduce the nesting to {MAX_JSON_DEPTH} levels"

_STRING_OR_BRACKET = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*(?:"|\\?\Z)|[\[\]{}]', re.DOTALL)
_SQUARE_BRACKETS = dict.fromkeys(range(128)) | str.maketrans("[{]}", "[[]]")  # and nothing else
_DECODER = json.JSONDecoder()
_T = TypeVar("_T")


class JsonDepthError(json.JSONDecodeError):
    """A JSON text is nested deeper than `MAX_JSON_DEPTH`. `pos` is the index of the first bracket that is too deep."""


def load_json(text: str | bytes, decoder: json.JSONDecoder = _DECODER) -> Any:
    """Return the value of a JSON text.

    Args:
        text: The text, or its bytes in UTF-8, UTF-16 or UTF-32.
        decoder: Builds the value.

    Raises:
        JsonDepthError: The text is nested deeper than `MAX_JSON_DEPTH`, and has no syntax error before that.
        ValueError: Whatever else `json.loads` raises.
    """
    if isinstance(text, bytes):
        text = text.decode(json.detect_encoding(text), "surrogatepass")
    value, _ = _limit_depth(lambda: (decoder.decode(text), len(text)), text, 0)
    return value


def raw_decode_json(text: str, position: int, decoder: json.JSONDecoder = _DECODER) -> tuple[Any, int]:
    """Return the JSON value that begins at a position of a text, and the position of its end.

    Raises:
        JsonDepthError: The value is nested deeper than `MAX_JSON_DEPTH`, and has no syntax error before that.
        ValueError: Whatever else `raw_decode` raises.
    """
    return _limit_depth(lambda: decoder.raw_decode(text, position), text, position)


def _limit_depth(decode: Callable[[], tuple[_T, int]], text: str, begin: int) -> tuple[_T, int]:
    try:
        value, end = decode()
    except RecursionError:
        too_deep = _find_too_deep(text, begin, len(text))
        raise JsonDepthError(NESTED_TOO_DEEP, text, begin if too_deep is None else too_deep) from None
    except json.JSONDecodeError as error:
        if _count_opening_brackets(text, begin, error.pos) > MAX_JSON_DEPTH:
            _validate_depth(text, begin, error.pos)
        raise
    except ValueError:  # an integer with too many digits; its position is unknown
        _validate_depth(text, begin, len(text))
        raise
    if _count_opening_brackets(text, begin, end) > MAX_JSON_DEPTH and _is_too_deep(text[begin:end]):
        _validate_depth(text, begin, end)
    return value, end


def _count_opening_brackets(text: str, begin: int, end: int) -> int:
    return text.count("[", begin, end) + text.count("{", begin, end)


def _is_too_deep(text: str) -> bool:
    """Return whether a valid JSON text is too deep. Faster than `_find_too_deep`."""
    # Without escapes, every second part between quotes is outside of strings.
    outside_strings = "".join(text.replace("\\\\", "").replace('\\"', "").split('"')[::2])
    brackets = outside_strings.translate(_SQUARE_BRACKETS)
    for _ in range(MAX_JSON_DEPTH):
        if not brackets:
            return False
        brackets = brackets.replace("[]", "")  # the innermost level
    return bool(brackets)


def _validate_depth(text: str, begin: int, end: int) -> None:
    too_deep = _find_too_deep(text, begin, end)
    if too_deep is not None:
        raise JsonDepthError(NESTED_TOO_DEEP, text, too_deep)


def _find_too_deep(text: str, begin: int, end: int) -> int | None:
    """Return the index of the first bracket of the value at `begin` that is too deep, or None."""
    depth = 0
    for match in _STRING_OR_BRACKET.finditer(text, begin, end):
        character = text[match.start()]
        if character in "[{":
            depth += 1
            if depth > MAX_JSON_DEPTH:
                return match.start()
        elif character in "]}":
            depth -= 1
            if depth <= 0:  # the end of the value
                return None
    return None
