"""The Unicode table of scripts that are written without spaces between words.

Each character of such a script counts as a word. The data checks and the text metrics use the same table.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable
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
