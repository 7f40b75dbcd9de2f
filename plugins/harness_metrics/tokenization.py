"""Word tokenization for mixed scripts: words with spaces stay whole, scripts without spaces are split.

Each metric's signature has the name of these rules, `TOKENIZATION_VERSION`: change it when you change a rule.
"""

from __future__ import annotations

import unicodedata
from functools import lru_cache

from harness.utils.words import CodePointSet, script_of

TOKENIZATION_VERSION = "harness-cjk2"

_TIBETAN = CodePointSet([(0x0F00, 0x0FFF)])
_TIBETAN_SYLLABLE_MARKS = "\u0f0b\u0f0c"  # the dot (tsheg) that ends each Tibetan syllable
_WIDE_PUNCTUATION = CodePointSet([(0x3000, 0x303F), (0xFE30, 0xFE4F), (0xFF00, 0xFF65), (0xFFE0, 0xFFEE)])

_CHINESE_LANGUAGES = ("zh", "zho", "chi", "cmn", "yue", "wuu", "lzh", "nan", "hak", "gan", "hsn")
_CHARACTER_LANGUAGES = (
    *("ja", "jpn", "ko", "kor", "th", "tha", "lo", "lao", "km", "khm", "my", "mya", "bur", "shn", "ii", "iii"),
    *("bo", "bod", "tib", "dz", "dzo"),
)


def tokenize_words(text: str) -> list[str]:
    """Return the words of a text, case folded and in Unicode's composed form (NFC).

    In scripts with spaces, words are letters, digits and their marks. Everything between them is dropped, as in
    ROUGE-1.5.5; for ASCII text the result equals that of the package `rouge_score`. In scripts without spaces, and for
    full-width punctuation, each character is a word, with its combining marks. A text without any of these, e.g. `:-)`
    or an emoji, is split into its characters, so that only a blank text has no words.
    """
    return list(_words(text))


@lru_cache(maxsize=64)  # the metrics of a suite tokenize the same answer and reference, one after the other
def _words(text: str) -> tuple[str, ...]:
    text = unicodedata.normalize("NFC", text).casefold()
    words: list[str] = []
    previous = ""  # the character before: part of a "word", a "character" that is a word, or neither
    for character in text:
        category = unicodedata.category(character)
        if category == "Cf":  # joiners and soft hyphens occur inside words
            continue
        if category[0] == "M" and previous:
            words[-1] += character
        elif script_of(character) != "spaced" or (category[0] in "PS" and character in _WIDE_PUNCTUATION):
            words.append(character)
            previous = "character"
        elif category[0] in "LNM":
            if previous == "word":
                words[-1] += character
            else:
                words.append(character)
            previous = "word"
        else:
            previous = ""
    return tuple(words or (character for character in text if not character.isspace()))


def segmentation_of(text: str, lang: str = "auto") -> str:
    """Return how to split a text: `zh`, `char` (other scripts without spaces) or `spaced`.

    Args:
        text: The text. With `auto`, it is `spaced` unless more than 0.3 of its letters belong to scripts without
            spaces. It is then `zh` if at least half of those are Han.
        lang: An ISO 639 code of two or three letters, which decides; or `auto`: the text's letters decide.
    """
    if lang != "auto":
        return "zh" if lang in _CHINESE_LANGUAGES else "char" if lang in _CHARACTER_LANGUAGES else "spaced"
    letters = [character for character in text if unicodedata.category(character)[0] == "L"]
    han = sum(script_of(character) == "han" for character in letters)
    other = sum(script_of(character) == "other" or character in _TIBETAN for character in letters)
    if han + other <= 0.3 * len(letters):
        return "spaced"
    return "zh" if han >= other else "char"


def space_out(text: str) -> str:
    """Return the text with spaces around each character of a script without spaces, and after each Tibetan syllable."""
    return "".join(_space_out_character(character) for character in text)


def _space_out_character(character: str) -> str:
    if character in _TIBETAN_SYLLABLE_MARKS:
        return f"{character} "
    return character if script_of(character) == "spaced" else f" {character} "
