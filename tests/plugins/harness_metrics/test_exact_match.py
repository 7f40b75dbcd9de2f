"""Exact match and its normalization."""

from __future__ import annotations

import pytest

PREDICTIONS, REFERENCES = ["cat?", "theater", "yelling", "agent"], ["the cat", "theater", "YELLING", "agent007"]


@pytest.mark.parametrize(
    ("ignored", "value"),
    [
        ([], 0.25),
        (["case", "punctuation"], 0.5),
        (["case", "punctuation", "articles"], 0.75),
        (["case", "punctuation", "articles", "numbers"], 1.0),
    ],
)
def test_values_of_the_docstring_of_evaluate(score, ignored, value):
    assert score("exact_match", PREDICTIONS, REFERENCES, normalise=ignored)["exact_match"] == value


@pytest.mark.parametrize(
    ("answer", "reference", "ignored", "value"),
    [
        ("巴黎。", "巴黎", ["punctuation"], 1.0),
        ("巴黎。", "巴黎", [], 0.0),
        ("ＡＢＣ １", "ABC 1", ["nfkc"], 1.0),
        ("ＡＢＣ １", "ABC 1", ["case", "punctuation"], 0.0),
        (" two \n words ", "two words", [], 1.0),
        ("€5", "5", ["punctuation"], 0.0),
        ("", "", ["punctuation"], 0.0),
        ("  ", "the", ["articles"], 0.0),
        ("a", "the", ["articles"], 0.0),
        ("。", "。", ["punctuation"], 1.0),
        ("!", "。", ["punctuation"], 0.0),
    ],
)
def test_known_pairs_have_known_scores(score, answer, reference, ignored, value):
    assert score("exact_match", [answer], [reference], normalise=ignored)["exact_match"] == value


def test_any_of_several_references_may_match(score):
    assert score("exact_match", ["b"], [["a1", "b"]])["exact_match"] == 1.0


def test_signature_names_what_is_ignored(metric):
    assert metric("exact_match").signature() == "exact_match|norm:case+punctuation+articles|version:1"
    assert metric("exact_match", normalise=[]).signature() == "exact_match|norm:none|version:1"
