"""F1 of shared words."""

from __future__ import annotations

import pytest


@pytest.mark.parametrize(
    ("answer", "reference", "value"),
    [
        ("The cat sat.", "a cat sat down", 0.8),  # {cat, sat} of 2 and 3
        ("cat cat", "cat", 2 / 3),
        ("dog", "cat", 0.0),
        ("", "cat", 0.0),
        ("", "the", 0.0),
        ("the", "the", 1.0),
        ("北京市", "北京", 0.8),
        ("用Python", "用 python", 1.0),
        ("。", "。", 1.0),
    ],
)
def test_known_pairs_have_known_scores(score, answer, reference, value):
    assert score("token_f1", [answer], [reference])["token_f1"] == pytest.approx(value)


def test_score_is_the_mean_over_items_of_the_best_reference(score):
    assert score("token_f1", ["cat", "", "dog"], [["mouse", "cat"], "cat", "dog"])["token_f1"] == pytest.approx(2 / 3)


def test_signature_names_the_word_tokenization(metric):
    signature = "token_f1|norm:case+punctuation+articles|tok:space+harness-cjk2|version:1"
    assert metric("token_f1").signature() == signature
