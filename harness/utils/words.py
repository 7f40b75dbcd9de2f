"""The words of a text in any script, and the Unicode table of scripts that are written without spaces between words.

Each character of such a script counts as a word. The data checks and the text metrics use the same table. The metrics
have their own rules to split a text, because these are part of their signature.
"""

from __future__ import annotations

import re
import unicodedata
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from functools import cache
from typing import Literal

CodePointRange = tuple[int, int]
"""First and last code point, both included."""

HAN_RANGES: tuple[CodePointRange, ...] = (
    *((0x2E80, 0x2FDF), (0x3005, 0x3007), (0x3021, 0x3029), (0x3038, 0x303B), (0x31C0, 0x31EF)),
    *((0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xF900, 0xFAFF), (0x20000, 0x323AF)),
)
"""Han characters."""

UNSPACED_RANGES: tuple[CodePointRange, ...] = (
    *((0x0E00, 0x0EFF), (0x1000, 0x109F), (0x1100, 0x11FF), (0x1780, 0x17FF), (0x3031, 0x3035)),
    *((0x303C, 0x303C), (0x3040, 0x312F), (0x3130, 0x318F), (0x31A0, 0x31BF), (0x31F0, 0x31FF)),
    *((0xA960, 0xA97F), (0xAC00, 0xD7FF), (0xFF66, 0xFFDC), (0x1AFF0, 0x1B16F)),
)
"""Thai, Lao, Khmer, Burmese, kana, and Hangul, whose spaces are often omitted; with their punctuation."""

RARE_UNSPACED_RANGES: tuple[CodePointRange, ...] = (
    *((0x1950, 0x19FF), (0x1A20, 0x1AAF), (0x1B00, 0x1B7F)),
    *((0xA000, 0xA4CF), (0xA980, 0xA9FF), (0xAA60, 0xAADF)),
)
"""Tai Le, Tai Tham, Balinese, Yi, Javanese and their like. Only the metrics count their characters as words."""

UNSPACED_SCRIPT_PATTERN = "".join(f"{chr(first)}-{chr(last)}" for first, last in sorted(HAN_RANGES + UNSPACED_RANGES))
"""`HAN_RANGES` and `UNSPACED_RANGES` as ranges inside the brackets of a regular expression."""


class CodePointSet:
    """A set of characters, stored as ranges of code points."""

    def __init__(self, ranges: Iterable[CodePointRange]) -> None:
        """Store the ranges, which must not overlap."""
        self._ranges = sorted(ranges)
        self._starts = [start for start, _ in self._ranges]

    def __contains__(self, character: str) -> bool:
        code = ord(character)
        index = bisect_right(self._starts, code) - 1
        return index >= 0 and code <= self._ranges[index][1]


_han, _other_unspaced = CodePointSet(HAN_RANGES), CodePointSet(UNSPACED_RANGES + RARE_UNSPACED_RANGES)


def script_of(character: str) -> Literal["han", "other", "spaced"]:
    """Return `han`, `other` (kana, Hangul, Thai, Lao, Khmer, Burmese, Yi and their like), or else `spaced`."""
    if character < "\u0e00":
        return "spaced"
    return "han" if character in _han else "other" if character in _other_unspaced else "spaced"


LINE_BREAK_CONTROLS = re.compile("[\u00ad\u200b-\u200d\u2060\ufeff]")
"""Invisible characters that only say where a line may break."""

_ASCII_WORD = re.compile("[a-z0-9]+")


def split_words(text: str) -> list[str]:
    """Return the words of a text, case folded and composed (NFC), without punctuation.

    In scripts written without spaces each character is a word, together with its combining marks. A text of
    punctuation or symbols alone (`:-)`, an emoji) is split into characters, so that only a blank text has no words.
    """
    text = normalize_case(text)
    pattern = _ASCII_WORD if text.isascii() else word_pattern()  # the same words, four times as fast
    return pattern.findall(text) or [character for character in text if not character.isspace()]


def normalize_case(text: str) -> str:
    """Return the text case folded and composed (NFC), without invisible line-break controls."""
    if text.isascii():
        return text.lower()
    return unicodedata.normalize("NFC", _compose(text).casefold())


def is_unspaced_script(words: Sequence[str]) -> bool:
    """Return whether more than half of the words are characters of scripts written without spaces."""
    pattern = unspaced_character_pattern()
    return 2 * sum(1 for word in words if not word.isascii() and pattern.match(word)) > len(words)


def original_text_of_words(text: str, begin: int, end: int) -> str:
    """Return the part of a text from word `begin` to word `end` (exclusive), as the text writes it.

    Where case folding changes the number of words, the part of the normalized text is returned.
    """
    for candidate in (_compose(text), normalize_case(text)):
        spans = [match.span() for match in word_pattern().finditer(candidate)]
        if len(spans) >= end and len(spans) == len(split_words(text)):
            return candidate[spans[begin][0] : spans[end - 1][1]]
    return " ".join(split_words(text)[begin:end])


@cache
def unspaced_character_pattern() -> re.Pattern[str]:
    """Return the pattern of one character of a script that the data checks cut into characters."""
    return re.compile(f"[{UNSPACED_SCRIPT_PATTERN}]")


@cache
def word_pattern() -> re.Pattern[str]:
    """Return the pattern of a word; the first call takes some milliseconds, as it looks at all combining marks."""
    # `\w` excludes combining marks, which would cut the words of Indic scripts at every vowel sign.
    codes = [code for code in range(0x300, 0x1F000) if unicodedata.category(chr(code))[0] == "M"]
    known = set(codes)
    starts = [code for code in codes if code - 1 not in known]
    ends = [code for code in codes if code + 1 not in known]
    marks = "".join(f"{chr(start)}-{chr(end)}" for start, end in zip(starts, ends, strict=True))
    unspaced = UNSPACED_SCRIPT_PATTERN
    return re.compile(
        rf"(?:(?![{marks}])[{unspaced}])[{marks}]*"  # a character of an unspaced script and its marks
        rf"|(?:[^\W_{unspaced}]|(?![{unspaced}])[{marks}])+"  # letters, digits and marks of other scripts
    )


def _compose(text: str) -> str:
    return LINE_BREAK_CONTROLS.sub("", unicodedata.normalize("NFC", text))
