"""Word tokenization of mixed scripts."""

from __future__ import annotations

import pytest
from harness_metrics.tokenization import segmentation_of, space_out, tokenize_words
from hypothesis import given
from hypothesis import strategies as st


@given(st.text(alphabet=st.characters(max_codepoint=127)))
def test_ascii_words_equal_those_of_rouge_score(text):
    from rouge_score.tokenize import tokenize

    expected = tokenize(text, None)
    assert tokenize_words(text) == expected or not expected  # without any word we take characters, rouge_score nothing


@given(st.text())
def test_only_blank_text_has_no_words(text):
    # Format characters (joiners, direction marks) alone make an invisible text.
    visible = "".join(character for character in text if character.isprintable() and not character.isspace())
    assert tokenize_words(text) or not visible


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Cristóbal's Straße", ["cristóbal", "s", "strasse"]),
        ("cafe\u0301", ["café"]),
        ("GPT-4 用Python写代码。", ["gpt", "4", "用", "python", "写", "代", "码", "。"]),
        ("東京へ、行く", ["東", "京", "へ", "、", "行", "く"]),
        ("한국어 text", ["한", "국", "어", "text"]),
        ("𠀀𠀁", ["𠀀", "𠀁"]),
        ("हिन्दी भाषा", ["हिन्दी", "भाषा"]),
        ("Привет, мир!", ["привет", "мир"]),
        ("co\u00adop\u200derate", ["cooperate"]),
        ("ที่นี่", ["ที่", "นี่"]),
        (":-)", [":", "-", ")"]),
        (" \n", []),
    ],
)
def test_words_of_each_script(text, expected):
    assert tokenize_words(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The dog bit the man.", "spaced"),
        ("今天天气很好，我们去公园玩。", "zh"),
        ("今日は公園へ行きました。", "char"),
        ("오늘은 공원에 갔다", "char"),
        ("The word 好 means good", "spaced"),
        ("用 Python 写一个排序函数", "zh"),
        ("42 + 1", "spaced"),
        ("", "spaced"),
    ],
)
def test_segmentation_follows_the_fraction_of_letters(text, expected):
    assert segmentation_of(text) == expected


def test_space_out_separates_characters_and_keeps_words():
    assert space_out("用Python写").split() == ["用", "Python", "写"]


def test_tibetan_is_split_after_each_syllable():
    assert tokenize_words("བོད་ཡིག།") == ["བོད", "ཡིག"]
    assert space_out("བོད་ཡིག།").split() == ["བོད་", "ཡིག།"]
    assert segmentation_of("བོད་ཡིག།") == "char"
