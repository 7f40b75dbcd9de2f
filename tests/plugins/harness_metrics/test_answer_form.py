"""Metrics of an answer's form: repetition, length, patterns, JSON."""

from __future__ import annotations

import math

import pytest

from harness import HarnessError, Item


def test_distinct_counts_repetition_within_answers_only(score):
    assert score("distinct", ["a b a b"], [""]) == {"distinct1": 2 / 4, "distinct2": 2 / 3}
    twice = score("distinct", ["a b c", "a b c"], ["", ""])
    assert twice == {"distinct1": 1.0, "distinct2": 1.0}
    assert score("distinct", ["好好好好"], [""]) == {"distinct1": 1 / 4, "distinct2": 1 / 3}
    assert score("distinct", ["a b c"], [""], orders=[3]) == {"distinct3": 1.0}
    assert math.isnan(score("distinct", ["", ""], ["", ""])["distinct1"])


def test_length_ratio_is_a_ratio_of_sums_and_counts_unspaced_characters(score, metric):
    assert score("length_ratio", ["one two three", "one"], ["one two", "one two"])["length_ratio"] == 4 / 4
    assert score("length_ratio", ["天气很好"], ["天气好"])["length_ratio"] == pytest.approx(4 / 3)
    # The values of `evaluate`'s README for BLEU: 7 words against the nearest references' 6.
    readme = ["hello there general kenobi", "foo bar foobar"]
    several = [["hello there general kenobi", "hello there !"], ["foo bar foobar"]]
    assert score("length_ratio", readme, several)["length_ratio"] == pytest.approx(7 / 7)
    assert metric("length_ratio").higher_is_better is None


@pytest.mark.parametrize(
    ("pattern", "whole", "answer", "value"),
    [
        (r"\d+", False, "about 12 days", 1.0),
        (r"\d+", True, "about 12 days", 0.0),
        (r"\d+", True, " 12\n", 1.0),
        (r"(?i)YES", False, "yes", 1.0),
        (r"YES", False, "yes", 0.0),
        (r".", False, "", 0.0),
    ],
)
def test_answers_match_the_pattern_or_not(score, pattern, whole, answer, value):
    assert score("regex", [answer], ["whatever"], pattern=pattern, whole=whole)["regex"] == value


def test_an_invalid_pattern_is_refused(metric):
    with pytest.raises(HarnessError, match=r"metrics\.regex\.pattern: .*'\(' is not a regular expression"):
        metric("regex", pattern="(")
    with pytest.raises(HarnessError, match=r"metrics\.exact_match\.extract"):
        metric("exact_match", extract="(")


@pytest.mark.parametrize(
    ("answer", "valid", "fits"),
    [
        ('{"n": 1}', 1.0, 1.0),
        (' {"n": 1}\n', 1.0, 1.0),
        ('{"n": "1"}', 1.0, 0.0),
        ("[]", 1.0, 0.0),
        ('{"n": 1,}', 0.0, 0.0),
        ('{"n": NaN}', 0.0, 0.0),
        ('Here: {"n": 1}', 0.0, 0.0),
        ("", 0.0, 0.0),
        ("[" * 100_000, 0.0, 0.0),
    ],
)
def test_json_syntax_and_schema_are_checked(score, metric, answer, valid, fits):
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
    assert score("json_valid", [answer], [""], schema=schema) == {"json_valid": valid, "schema_valid": fits}
    assert score("json_valid", [answer], [""]) == {"json_valid": valid}
    assert metric("json_valid").is_parsed(Item("x", "", "", answer)) is bool(valid)


def test_a_code_fence_is_accepted_if_allowed(score):
    fenced = '```json\n{"n": 1}\n```'
    assert score("json_valid", [fenced], [""])["json_valid"] == 0.0
    assert score("json_valid", [fenced], [""], fenced=True)["json_valid"] == 1.0
    assert score("json_valid", [f"Look:\n{fenced}"], [""], fenced=True)["json_valid"] == 0.0
    assert score("json_valid", ['{"n": 1}'], [""], fenced=True)["json_valid"] == 1.0


def test_an_invalid_schema_is_refused(metric):
    with pytest.raises(HarnessError, match=r"metrics\.json_valid\.schema: is not a JSON Schema: type"):
        metric("json_valid", schema={"type": "nonsense"})


@pytest.mark.parametrize("name", ["exact_match", "token_f1"])
def test_the_extracted_part_is_compared_and_its_absence_counted(score, metric, name):
    answers, references = ["5 + 7 = 12, so #### 12", "#### 3 then #### 12", "twelve"], ["it is #### 12"] * 3
    options = {"extract": r"#### (\d+)"}
    assert score(name, answers, references, **options)[name] == pytest.approx(2 / 3)
    assert score(name, answers[:1], ["12"], **options)[name] == 1.0  # a reference that is the answer alone
    instance = metric(name, **options)
    assert [instance.is_parsed(Item("x", "", "r", answer)) for answer in answers] == [True, True, False]
    assert "|extract:" in instance.signature()
    assert all(metric(name).is_parsed(Item("x", "", "r", answer)) for answer in answers)


def test_articles_are_ignored_only_in_english(score):
    assert score("exact_match", ["mange a Paris"], ["mange Paris"])["exact_match"] == 1.0
    assert score("exact_match", ["mange a Paris"], ["mange Paris"], lang="fr")["exact_match"] == 0.0
    for lang in ("en", "eng"):
        assert score("exact_match", ["the cat"], ["cat"], lang=lang)["exact_match"] == 1.0
