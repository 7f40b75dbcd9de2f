"""How text is cut into words where scripts are mixed: words with spaces stay whole, scripts without are cut.

Knows Unicode, not metrics. The rules have a name, `TOKENIZATION_VERSION`, that goes into each signature: change them,
change it.
"""

from __future__ import annotations

import unicodedata
from bisect import bisect_right

TOKENIZATION_VERSION = "harness-cjk2"

# Scripts written without spaces between words, or (Hangul) scored by the character by custom, with their punctuation.
_HAN: tuple[tuple[int, int], ...] = (
    *((0x2E80, 0x2FDF), (0x3005, 0x3007), (0x3021, 0x3029), (0x3038, 0x303B), (0x31C0, 0x31EF)),
    *((0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xF900, 0xFAFF), (0x20000, 0x323AF)),
)
_OTHER_UNSPACED: tuple[tuple[int, int], ...] = (
    *((0x0E00, 0x0EFF), (0x1000, 0x109F), (0x1100, 0x11FF), (0x1780, 0x17FF), (0x3031, 0x3035)),
    *((0x1950, 0x19FF), (0x1A20, 0x1AAF), (0x1B00, 0x1B7F), (0xA000, 0xA4CF), (0xA980, 0xA9FF), (0xAA60, 0xAADF)),
    *((0x303C, 0x303C), (0x3040, 0x312F), (0x3130, 0x318F), (0x31A0, 0x31BF), (0x31F0, 0x31FF)),
    *((0xA960, 0xA97F), (0xAC00, 0xD7FF), (0xFF66, 0xFFDC), (0x1AFF0, 0x1B16F)),
)
_TIBETAN = ((0x0F00, 0x0FFF),)
_TIBETAN_SYLLABLE_MARKS = "\u0f0b\u0f0c"  # the dot (tsheg) that ends each Tibetan syllable
_WIDE_PUNCTUATION = ((0x3000, 0x303F), (0xFE30, 0xFE4F), (0xFF00, 0xFF65), (0xFFE0, 0xFFEE))


class _CodePointRanges:
    """Membership in a set of ranges of code points."""

    def __init__(self, *ranges: tuple[int, int]) -> None:
        self._ranges = sorted(ranges)
        self._starts = [start for start, _ in self._ranges]

    def __contains__(self, character: str) -> bool:
        code = ord(character)
        index = bisect_right(self._starts, code) - 1
        return index >= 0 and code <= self._ranges[index][1]


_han, _other_unspaced, _tibetan, _wide_punctuation = (
    _CodePointRanges(*ranges) for ranges in (_HAN, _OTHER_UNSPACED, _TIBETAN, _WIDE_PUNCTUATION)
)


def script_of(character: str) -> str:
    """`han`, `other` (kana, Hangul, Thai, Lao, Khmer, Burmese, Yi and their like), else `spaced`."""
    if character < "\u0e00":
        return "spaced"
    return "han" if character in _han else "other" if character in _other_unspaced else "spaced"


def tokenize_words(text: str) -> list[str]:
    """The words of a text, case folded and in Unicode's composed form (NFC).

    Letters, digits and their marks make words in scripts that use spaces; everything between them is dropped, as in
    ROUGE-1.5.5 (for ASCII text the result equals that of the package `rouge_score`). In scripts without spaces, and
    for full-width punctuation, each character is a word, its combining marks with it. A text that holds nothing of
    the kind, e.g. `:-)` or an emoji, is taken by its characters, so that no text but a blank one is without words.
    """
    text = unicodedata.normalize("NFC", text).casefold()
    found: list[str] = []
    last = ""  # what the character before was: part of a word, a character that is a word, or neither
    for character in text:
        kind = unicodedata.category(character)
        if kind == "Cf":  # joiners and soft hyphens stand inside words
            continue
        if kind[0] == "M" and last:
            found[-1] += character
        elif script_of(character) != "spaced" or (kind[0] in "PS" and character in _wide_punctuation):
            found.append(character)
            last = "character"
        elif kind[0] in "LNM":
            if last == "word":
                found[-1] += character
            else:
                found.append(character)
            last = "word"
        else:
            last = ""
    return found or [character for character in text if not character.isspace()]


_CHINESE_LANGUAGES = ("zh", "zho", "chi", "cmn", "yue", "wuu", "lzh", "nan", "hak", "gan", "hsn")
_CHARACTER_LANGUAGES = (
    *("ja", "jpn", "ko", "kor", "th", "tha", "lo", "lao", "km", "khm", "my", "mya", "bur", "shn", "ii", "iii"),
    *("bo", "bod", "tib", "dz", "dzo"),
)


def segmentation_of(text: str, lang: str = "auto") -> str:
    """How a text is best cut: `zh`, `char` (other scripts without spaces) or `spaced`.

    lang: an ISO 639 code of two or three letters, which decides; or `auto`: the text's letters do. A text is then of
    scripts without spaces where they hold more than 0.3 of its letters, and `zh` where Han is at least half of these.
    """
    if lang != "auto":
        return "zh" if lang in _CHINESE_LANGUAGES else "char" if lang in _CHARACTER_LANGUAGES else "spaced"
    letters = [character for character in text if unicodedata.category(character)[0] == "L"]
    han = sum(script_of(character) == "han" for character in letters)
    other = sum(script_of(character) == "other" or character in _tibetan for character in letters)
    if han + other <= 0.3 * len(letters):
        return "spaced"
    return "zh" if han >= other else "char"


def space_out(text: str) -> str:
    """The text with spaces about each character of a script that is written without them, and after each syllable of
    Tibetan; the rest unchanged."""
    return "".join(_space_out_character(character) for character in text)


def _space_out_character(character: str) -> str:
    if character in _TIBETAN_SYLLABLE_MARKS:
        return f"{character} "
    return character if script_of(character) == "spaced" else f" {character} "
