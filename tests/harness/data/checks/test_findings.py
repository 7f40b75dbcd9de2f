"""What is found becomes a warning or a failure as the spec's `checks` say, with rows named."""

from __future__ import annotations

import json

import pytest

from harness import registry
from harness.data.checks.findings import FullyTruncatedRows, TextSequence, analyze_data
from harness.data.reading.conversation import build_example
from harness.spec import schema
from harness.types import Message

LONG = "the old clock in the tall tower of the town hall strikes every hour except at noon on sundays"


@pytest.fixture(scope="module")
def settings():
    """The filled `checks` of a spec that says nothing, with changes."""
    entries = [pair for pair in registry.installed_entry_points() if pair[0] == registry.CORE_DISTRIBUTION]
    composed = schema.compose_schema(registry.discover_plugins(entries))

    def settings(near=None, contamination=None):
        filled = schema.fill_defaults({"checks": {}}, composed, composed)["checks"]
        filled["near_duplicates"] |= near or {}
        filled["contamination"] |= contamination or {}
        return filled

    return settings


def rows(source, *pairs, system=None):
    first = [Message("system", system)] if system else []
    return [
        build_example([*first, Message("user", prompt), Message("assistant", response)], f"{source}:{number}")
        for number, (prompt, response) in enumerate(pairs, 1)
    ]


def asks(count, topic):
    return [(f"{topic} number {number * 7919}?", f"It is {number * 104729} of {topic}.") for number in range(count)]


def test_clean_data_has_neither_warnings_nor_failures(settings):
    found = analyze_data({"a": rows("a", ("Why?", LONG))}, {"s": rows("e", ("What?", "Nothing."))}, settings(), seed=0)
    assert (found.warnings, found.failures, found.shared_rows) == ((), (), ())
    assert found.near_duplicates.repeats == 0
    assert found.contamination["s"].items == 1


def test_near_duplicates_warn_and_fail_only_above_what_is_allowed(settings):
    data = {"a": rows("a", (LONG, "Yes."), ("Who?", "The mayor."), (LONG + "!", "Yes."))}
    found = analyze_data(data, {}, settings(), seed=0)
    assert found.failures == ()
    (told,) = found.warnings
    assert told.startswith("1 of 3 training rows nearly repeat an earlier one\na:3 ≈ a:1 (0.9")
    found = analyze_data(data, {}, settings({"allowed": 0.3}), seed=0)
    assert found.warnings == ()
    (error,) = found.failures
    assert error.where == "checks.near_duplicates"
    assert "a:3 ≈ a:1" in error.what
    assert "allowed (0.3) to 0.334" in error.hint
    assert analyze_data(data, {}, settings({"allowed": 0.334}), seed=0).failures == ()


def test_a_sample_is_said_to_be_one(settings):
    found = analyze_data({"a": rows("a", *asks(9, "rivers"))}, {}, settings({"rows": 4}), seed=0)
    assert "of 9 training rows 4, chosen by the seed, were compared" in found.warnings[0]


def test_prompts_fail_and_responses_warn_unless_something_else_is_allowed(settings):
    data = {"a": rows("a", (LONG, "Yes, it does."), ("Tell me.", f"Well, {LONG}."))}
    suites = {"s": rows("e", (LONG.upper() + ".", "Right."), ("What of it?", LONG), ("Else?", "No."))}
    found = analyze_data(data, suites, settings(), seed=0)
    (error,) = found.failures
    assert error.where == "evaluate.s"
    assert error.what.startswith("1 of its 3 prompts stand in training, in whole or for the most part: e:1 ~ a:1 (")
    assert error.hint.endswith("or raise checks.contamination.allowed (0) to 0.334")
    (told,) = found.warnings
    assert told.startswith("evaluate.s: 1 of its 3 responses stand in training, in whole or for the most part\ne:2 ~ ")
    found = analyze_data(data, suites, settings(contamination={"allowed": 0.334, "allowed_responses": 0.1}), seed=0)
    assert ["prompt" in told for told in found.warnings] == [True]
    assert "allowed_responses (0.1) to 0.334" in found.failures[0].hint


def test_only_some_rows_are_named_and_the_rest_counted(settings):
    prompts = [f"{LONG} and also {number} and then {number}" for number in range(5)]
    data = {"a": rows("a", *[(prompt, "Yes.") for prompt in prompts])}
    suites = {"s": rows("e", *[(f"{prompt}!", "No.") for prompt in prompts])}
    (error,) = analyze_data(data, suites, settings(), seed=0).failures
    assert error.what.endswith(" and 2 more")


@pytest.mark.parametrize(("allowed", "fails"), [(0, True), (0.019, True), (0.02, False), (1, False), (None, False)])
def test_rows_with_nothing_trained_left_warn_and_fail_above_what_is_allowed(settings, allowed, fails):
    lost = {"a": FullyTruncatedRows(50, 1, 64, ("a:7",)), "b": FullyTruncatedRows(9, 0, 64, ())}
    found = analyze_data({}, {}, {**settings(), "untrained": allowed}, seed=0, fully_truncated=lost)
    assert found.to_dict()["untrained"] == {
        "a": {"rows": 50, "lost": 1, "max_length": 64, "places": ["a:7"], "share": 0.02}
    }
    told = "sources.a: 1 of its 50 training rows have no trained token within 64 tokens and are left out"
    if not fails:
        assert (found.warnings, found.failures) == ((f"{told}\na:7",), ())
        return
    (error,) = found.failures
    assert found.warnings == ()
    assert str(error) == (
        f"{told}: a:7; raise train.max_length, take these rows out or shorten their prompts, or raise checks.untrained "
        f"({allowed:g}) to 0.02"
    )


def test_by_default_one_row_in_a_hundred_may_have_nothing_trained_left(settings):
    assert settings()["untrained"] == 0.01
    lost = {"a": FullyTruncatedRows(1000, 11, 64, ("a:1", "a:2", "a:3"))}
    (error,) = analyze_data({}, {}, settings(), seed=0, fully_truncated=lost).failures
    assert error.what.endswith("a:1, a:2, a:3 and 8 more")
    assert error.hint.endswith("checks.untrained (0.01) to 0.011")


def test_a_suite_of_plain_texts_fails_as_one_of_prompts_does(settings):
    def texts(source, *contents):
        return [build_example([Message("text", one)], f"{source}:{n}") for n, one in enumerate(contents, 1)]

    suites = {"s": texts("e", LONG, "Nothing of it.")}
    for data in ({"a": texts("a", f"Well, {LONG}!")}, {"a": rows("a", ("Say it.", LONG))}):
        found = analyze_data(data, suites, settings(), seed=0)
        (error,) = found.failures
        assert error.where == "evaluate.s"
        assert error.what.startswith("1 of its 2 texts stand in training, in whole or for the most part: e:1 ~ a:1 (")
        assert error.hint.endswith("or raise checks.contamination.allowed (0) to 0.5")
        assert found.to_dict()["contamination"]["s"]["kind"] == "text"
        assert analyze_data(data, suites, settings(contamination={"allowed": 0.5}), seed=0).failures == ()


def test_what_is_not_asked_for_is_not_looked_for(settings):
    asked = {**settings(), "near_duplicates": None, "contamination": None}
    data = rows("a", (LONG, "Yes."), (LONG + "!", "Yes."))
    found = analyze_data({"a": data}, {"s": data}, asked, seed=0)
    assert (found.near_duplicates, found.contamination, found.warnings, found.failures) == (None, None, (), ())
    assert found.to_dict() == {"untrained": {}, "shared": [], "near_duplicates": None, "contamination": None}


def test_rows_of_two_sources_that_are_equal_are_named(settings):
    pairs = asks(3, "hills")
    found = analyze_data({"a": rows("a", *pairs), "b": rows("b", *pairs[1:])}, {}, settings(), seed=0)
    assert found.warnings[0] == "2 row(s) stand in both 'a' and 'b'\na:2 = b:1\na:3 = b:2"
    assert found.shared_rows[0].examples == (("a:2", "b:1"), ("a:3", "b:2"))


def test_a_system_message_that_rows_share_makes_them_no_duplicates(settings):
    found = analyze_data({"a": rows("a", *asks(4, "lakes"), system=LONG * 5)}, {}, settings(), seed=0)
    assert found.near_duplicates.repeats == 0


def test_what_rows_hold_cannot_steer_the_terminal(settings):
    hostile = "\x1b[31m " + LONG
    found = analyze_data({"a": rows("a", (hostile, "a"))}, {"s": rows("e", (hostile + "!", "b"))}, settings(), seed=0)
    assert "\x1b" not in str(found.failures[0])


def test_the_facts_are_plain_data(settings):
    data = {"a": rows("a", (LONG, "Yes."), (LONG + "!", "Yes.")), "b": rows("b", (LONG, "Yes."))}
    facts = analyze_data(data, {"s": rows("e", (LONG, "No."))}, settings(), seed=0).to_dict()
    assert json.loads(json.dumps(facts)) == facts
    assert facts["near_duplicates"]["share"] == pytest.approx(2 / 3)
    assert facts["shared"] == [{"sources": ["a", "b"], "rows": 1, "examples": [["a:1", "b:1"]]}]
    assert facts["contamination"]["s"]["worst"][0]["row"] == "a:1"


def test_the_texts_of_all_sources_stand_one_after_the_other():
    data = {"a": rows("a", ("one", "two")), "empty": [], "b": rows("b", ("three", "four"), ("five", "six"))}
    texts = TextSequence(data)
    assert len(texts) == 3
    assert list(texts) == [texts[0], texts[1], texts[2]] == texts[:]
    assert [place for place, _ in texts] == ["a:1", "b:1", "b:2"]
    assert texts[0][1] == "one\ntwo"
    with pytest.raises(IndexError):
        texts[3]
    assert len(TextSequence({})) == 0
