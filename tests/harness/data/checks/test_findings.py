"""Findings become warnings or failures, with rows named, as the spec's `checks` define."""

from __future__ import annotations

import json

import pytest

from harness import registry
from harness.data.checks.findings import FullyTruncatedRows, TextSequence, analyze_data
from harness.data.reading.conversation import build_example
from harness.interfaces.component import CORE_DISTRIBUTION
from harness.spec import schema
from harness.types import Message

LONG = "the old clock in the tall tower of the town hall strikes every hour except at noon on sundays"


@pytest.fixture(scope="module")
def settings():
    """Return the default `checks` of a spec, with changes."""
    entries = [pair for pair in registry.installed_entry_points() if pair[0] == CORE_DISTRIBUTION]
    composed = schema.compose_schema(registry.discover_plugins(entries))

    def build_settings(near=None, contamination=None):
        filled = schema.fill_defaults({"checks": {}}, composed, composed)["checks"]
        filled["near_duplicates"] |= near or {}
        filled["contamination"] |= contamination or {}
        return filled

    return build_settings


def build_rows(source, *pairs, system=None):
    system_messages = [Message("system", system)] if system else []
    return [
        build_example([*system_messages, Message("user", prompt), Message("assistant", response)], f"{source}:{number}")
        for number, (prompt, response) in enumerate(pairs, 1)
    ]


def build_pairs(count, topic):
    return [(f"{topic} number {number * 7919}?", f"It is {number * 104729} of {topic}.") for number in range(count)]


def test_clean_data_has_no_warnings_and_no_failures(settings):
    findings = analyze_data(
        {"a": build_rows("a", ("Why?", LONG))}, {"s": build_rows("e", ("What?", "Nothing."))}, settings(), seed=0
    )
    assert (findings.warnings, findings.failures, findings.shared_rows) == ((), (), ())
    assert findings.near_duplicates.repeats == 0
    assert findings.contamination["s"].items == 1


def test_near_duplicates_fail_only_above_the_allowed_share(settings):
    data = {"a": build_rows("a", (LONG, "Yes."), ("Who?", "The mayor."), (LONG + "!", "Yes."))}
    findings = analyze_data(data, {}, settings(), seed=0)
    assert findings.failures == ()
    (warning,) = findings.warnings
    assert warning.startswith("1 of 3 training rows nearly repeat an earlier one\na:3 ≈ a:1 (0.9")
    findings = analyze_data(data, {}, settings({"allowed": 0.3}), seed=0)
    assert findings.warnings == ()
    (error,) = findings.failures
    assert error.where == "checks.near_duplicates"
    assert "a:3 ≈ a:1" in error.what
    assert "allowed (0.3) to 0.334" in error.hint
    assert analyze_data(data, {}, settings({"allowed": 0.334}), seed=0).failures == ()


def test_sampling_is_reported(settings):
    findings = analyze_data({"a": build_rows("a", *build_pairs(9, "rivers"))}, {}, settings({"rows": 4}), seed=0)
    assert "only 4 of 9 training rows, chosen by the seed, were compared" in findings.warnings[0]


def test_prompts_fail_and_responses_warn_by_default(settings):
    data = {"a": build_rows("a", (LONG, "Yes, it does."), ("Tell me.", f"Well, {LONG}."))}
    suites = {"s": build_rows("e", (LONG.upper() + ".", "Right."), ("What of it?", LONG), ("Else?", "No."))}
    findings = analyze_data(data, suites, settings(), seed=0)
    (error,) = findings.failures
    assert error.where == "evaluate.s"
    assert error.what.startswith(
        "1 of its 3 prompts are in the training data, completely or for the most part: e:1 ~ a:1 ("
    )
    assert error.hint.endswith("or raise checks.contamination.allowed (0) to 0.334")
    (warning,) = findings.warnings
    assert warning.startswith(
        "evaluate.s: 1 of its 3 responses are in the training data, completely or for the most part\ne:2 ~ "
    )
    findings = analyze_data(data, suites, settings(contamination={"allowed": 0.334, "allowed_responses": 0.1}), seed=0)
    assert ["prompt" in warning for warning in findings.warnings] == [True]
    assert "allowed_responses (0.1) to 0.334" in findings.failures[0].hint


def test_first_rows_are_named_and_the_rest_counted(settings):
    prompts = [f"{LONG} and also {number} and then {number}" for number in range(5)]
    data = {"a": build_rows("a", *[(prompt, "Yes.") for prompt in prompts])}
    suites = {"s": build_rows("e", *[(f"{prompt}!", "No.") for prompt in prompts])}
    (error,) = analyze_data(data, suites, settings(), seed=0).failures
    assert error.what.endswith(" and 2 more")


@pytest.mark.parametrize(("allowed", "fails"), [(0, True), (0.019, True), (0.02, False), (1, False), (None, False)])
def test_fully_truncated_rows_fail_only_above_the_allowed_share(settings, allowed, fails):
    lost = {"a": FullyTruncatedRows(50, 1, 64, ("a:7",)), "b": FullyTruncatedRows(9, 0, 64, ())}
    findings = analyze_data({}, {}, {**settings(), "untrained": allowed}, seed=0, fully_truncated=lost)
    assert findings.to_dict()["untrained"] == {
        "a": {"rows": 50, "lost": 1, "max_length": 64, "places": ["a:7"], "share": 0.02}
    }
    message = "sources.a: 1 of its 50 training rows have no trained token within 64 tokens and are dropped"
    if not fails:
        assert (findings.warnings, findings.failures) == ((f"{message}\na:7",), ())
        return
    (error,) = findings.failures
    assert findings.warnings == ()
    assert str(error) == (
        f"{message}: a:7; raise train.max_length, shorten the prompts of these rows or remove them, or raise "
        f"checks.untrained ({allowed:g}) to 0.02"
    )


def test_by_default_one_percent_of_rows_may_be_fully_truncated(settings):
    assert settings()["untrained"] == 0.01
    lost = {"a": FullyTruncatedRows(1000, 11, 64, ("a:1", "a:2", "a:3"))}
    (error,) = analyze_data({}, {}, settings(), seed=0, fully_truncated=lost).failures
    assert error.what.endswith("a:1, a:2, a:3 and 8 more")
    assert error.hint.endswith("checks.untrained (0.01) to 0.011")


def test_suite_of_plain_texts_fails_like_one_of_prompts(settings):
    def build_texts(source, *contents):
        return [build_example([Message("text", text)], f"{source}:{n}") for n, text in enumerate(contents, 1)]

    suites = {"s": build_texts("e", LONG, "Nothing of it.")}
    for data in ({"a": build_texts("a", f"Well, {LONG}!")}, {"a": build_rows("a", ("Say it.", LONG))}):
        findings = analyze_data(data, suites, settings(), seed=0)
        (error,) = findings.failures
        assert error.where == "evaluate.s"
        assert error.what.startswith(
            "1 of its 2 texts are in the training data, completely or for the most part: e:1 ~ a:1 ("
        )
        assert error.hint.endswith("or raise checks.contamination.allowed (0) to 0.5")
        assert findings.to_dict()["contamination"]["s"]["kind"] == "text"
        assert analyze_data(data, suites, settings(contamination={"allowed": 0.5}), seed=0).failures == ()


def test_disabled_checks_are_not_run(settings):
    disabled = {**settings(), "near_duplicates": None, "contamination": None}
    data = build_rows("a", (LONG, "Yes."), (LONG + "!", "Yes."))
    findings = analyze_data({"a": data}, {"s": data}, disabled, seed=0)
    assert (findings.near_duplicates, findings.contamination, findings.warnings, findings.failures) == (
        None,
        None,
        (),
        (),
    )
    assert findings.to_dict() == {
        "untrained": {}, "shared": [], "rendered": {}, "near_duplicates": None, "contamination": None,
        "plugins": {},
    }  # fmt: skip


def test_equal_rows_of_two_sources_are_named(settings):
    pairs = build_pairs(3, "hills")
    findings = analyze_data({"a": build_rows("a", *pairs), "b": build_rows("b", *pairs[1:])}, {}, settings(), seed=0)
    assert findings.warnings[0] == "2 row(s) are in both 'a' and 'b'\na:2 = b:1\na:3 = b:2"
    assert findings.shared_rows[0].examples == (("a:2", "b:1"), ("a:3", "b:2"))


def test_shared_system_message_does_not_make_duplicates(settings):
    findings = analyze_data({"a": build_rows("a", *build_pairs(4, "lakes"), system=LONG * 5)}, {}, settings(), seed=0)
    assert findings.near_duplicates.repeats == 0


def test_control_characters_of_rows_are_escaped(settings):
    hostile = "\x1b[31m " + LONG
    findings = analyze_data(
        {"a": build_rows("a", (hostile, "a"))}, {"s": build_rows("e", (hostile + "!", "b"))}, settings(), seed=0
    )
    assert "\x1b" not in str(findings.failures[0])


def test_findings_are_plain_data(settings):
    data = {"a": build_rows("a", (LONG, "Yes."), (LONG + "!", "Yes.")), "b": build_rows("b", (LONG, "Yes."))}
    findings = analyze_data(data, {"s": build_rows("e", (LONG, "No."))}, settings(), seed=0).to_dict()
    assert json.loads(json.dumps(findings)) == findings
    assert findings["near_duplicates"]["share"] == pytest.approx(2 / 3)
    assert findings["shared"] == [{"sources": ["a", "b"], "rows": 1, "examples": [["a:1", "b:1"]]}]
    assert findings["contamination"]["s"]["worst"][0]["row"] == "a:1"


def test_text_sequence_concatenates_the_sources():
    data = {"a": build_rows("a", ("one", "two")), "empty": [], "b": build_rows("b", ("three", "four"), ("five", "six"))}
    texts = TextSequence(data)
    assert len(texts) == 3
    assert list(texts) == [texts[0], texts[1], texts[2]] == texts[:]
    assert [location for location, _ in texts] == ["a:1", "b:1", "b:2"]
    assert texts[0][1] == "one\ntwo"
    with pytest.raises(IndexError):
        texts[3]
    assert len(TextSequence({})) == 0
