"""The words of a text, in scripts with and without spaces."""

from __future__ import annotations

import unicodedata

import pytest

from harness.utils.words import is_unspaced_script, normalize_case, original_text_of_words, script_of, split_words


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("The QUICK, brown fox!", ["the", "quick", "brown", "fox"]),
        ("snake_case 3.5", ["snake", "case", "3", "5"]),
        ("Straße naïve", ["strasse", "naïve"]),
        ("東京 tower へ", ["東", "京", "tower", "へ"]),
        ("한국 어", ["한", "국", "어"]),
        ("हिन्दी भाषा", ["हिन्दी", "भाषा"]),
        ("ดี", ["ดี"]),
        ("soft\u00adened", ["softened"]),
        (":-)", [":", "-", ")"]),
        (" \n", []),
    ],
)
def test_split_words_in_every_script(text, words):
    assert split_words(text) == words


def test_composition_and_case_are_ignored():
    assert split_words(unicodedata.normalize("NFD", "CAFÉ")) == split_words("café")
    assert normalize_case("\ufeffA") == "a"


def test_script_is_unspaced_if_most_words_are_characters_of_unspaced_scripts():
    assert is_unspaced_script(split_words("我们用 Python 写代码"))
    assert not is_unspaced_script(split_words("the word 水 means water"))
    assert not is_unspaced_script([])


@pytest.mark.parametrize(
    ("text", "begin", "end", "original"),
    [
        ("The QUICK, brown  fox", 1, 3, "QUICK, brown"),
        ("東京は、日本の首都", 1, 4, "京は、日"),
        (":-)", 0, 2, ": -"),
    ],
)
def test_original_text_of_words_is_written_as_in_the_text(text, begin, end, original):
    assert original_text_of_words(text, begin, end) == original


@pytest.mark.parametrize(
    ("character", "script"),
    [("a", "spaced"), ("水", "han"), ("か", "other"), ("ข", "other"), ("한", "other"), ("ꀀ", "other")],
)
def test_script_of_character(character, script):
    assert script_of(character) == script
