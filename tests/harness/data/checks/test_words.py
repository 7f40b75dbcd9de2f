"""What counts as a word, in scripts with and without spaces."""

from __future__ import annotations

import unicodedata

import pytest

from harness.data.checks.words import (
    conversation_text,
    is_unspaced_script,
    normalize_case,
    original_text_of_words,
    prompt_messages,
    response_message,
    split_words,
)
from harness.types import Example, Message, ToolCall


@pytest.mark.parametrize(
    ("text", "found"),
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
def test_words(text, found):
    assert split_words(text) == found


def test_composition_and_case_do_not_count():
    assert split_words(unicodedata.normalize("NFD", "CAFÉ")) == split_words("café")
    assert normalize_case("\ufeffA") == "a"


def test_a_text_is_unspaced_when_most_of_its_words_are_single_characters_of_such_scripts():
    assert is_unspaced_script(split_words("我们用 Python 写代码"))
    assert not is_unspaced_script(split_words("the word 水 means water"))
    assert not is_unspaced_script([])


@pytest.mark.parametrize(
    ("text", "begin", "end", "shown"),
    [
        ("The QUICK, brown  fox", 1, 3, "QUICK, brown"),
        ("東京は、日本の首都", 1, 4, "京は、日"),
        (":-)", 0, 2, ": -"),
    ],
)
def test_a_stretch_is_shown_as_it_was_written(text, begin, end, shown):
    assert original_text_of_words(text, begin, end) == shown


def test_a_conversation_says_its_contents_inputs_and_calls():
    call = Message("assistant", "Wait.", tool_calls=(ToolCall("weather", {"city": "Köln"}),))
    example = Example("id", (Message("user", "Sum up.", input="a text"), call), "x:1")
    assert conversation_text(prompt_messages(example)) == "Sum up.\na text"
    assert conversation_text([response_message(example)]) == 'Wait.\nweather {"city": "Köln"}'
