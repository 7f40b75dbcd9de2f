"""Checks of plugins: limits, messages and what is stored."""

from __future__ import annotations

import pytest

from harness.data.checks.findings import analyze_data
from harness.data.checks.plugin_checks import MAX_STORED, run_plugin_checks, unavailable_check_errors
from harness.errors import ComponentError, HarnessError
from harness.interfaces.check import Check
from harness.types import Example, Finding, Message


class Shouting(Check):
    """Finds messages in capitals; one finding for each message."""

    def find_issues(self, rows, *, name, is_training):
        for example in rows:
            for message in example.messages:
                if message.content.isupper():
                    yield Finding(example.location, f"capitals ({'training' if is_training else 'suite'} {name})")

    def check_available(self):
        raise HarnessError("shouting", "no microphone", "pip install ears")


def rows(*texts):
    return [Example(str(i), (Message("user", text),), f"a.jsonl:{i}") for i, text in enumerate(texts, 1)]


def run(allowed, **training):
    return run_plugin_checks({"loud": (Shouting(), allowed)}, training, {"held": rows("quiet", "LOUD")})


def test_rows_of_sources_and_suites_are_checked_and_counted():
    desk, held = run(None, desk=rows("HI", "ho", "HU"))
    assert (desk.place, desk.rows, desk.rows_found, desk.share) == ("sources.desk", 3, 2, 2 / 3)
    assert desk.findings[0] == Finding("a.jsonl:1", "capitals (training desk)")
    assert (held.place, held.rows_found, held.findings[0].text) == ("evaluate.held", 1, "capitals (suite held)")
    assert desk.to_dict() == {
        "rows": 3,
        "rows_found": 2,
        "findings": [{"location": f"a.jsonl:{i}", "text": "capitals (training desk)"} for i in (1, 3)],
    }


def test_many_findings_are_counted_and_the_first_are_stored():
    desk, _ = run(None, desk=rows(*["HI"] * (MAX_STORED + 5)))
    assert desk.rows_found == MAX_STORED + 5
    assert len(desk.findings) == MAX_STORED
    assert str(desk.message()).splitlines()[-1] == f"and {MAX_STORED + 2} more rows"


def test_a_message_has_a_line_for_each_row_and_counts_the_other_rows():
    """A row with several findings is one row."""
    texts = [Message("user", "HI"), Message("assistant", "HO")]
    several = [Example(str(i), tuple(texts), f"a.jsonl:{i}") for i in range(1, 6)]
    desk, _ = run(None, desk=several)
    lines = str(desk.message()).splitlines()
    assert lines[0].endswith("has findings in 5 of its 5 rows")
    assert [line.partition(": ")[0] for line in lines[1:4]] == ["a.jsonl:1", "a.jsonl:2", "a.jsonl:3"]
    assert lines[1].count("capitals") == 2
    assert lines[4:] == ["and 2 more rows"]
    four, _ = run(None, desk=several[:4])
    assert str(four.message()).splitlines()[4:] == ["and 1 more row"]


def test_findings_up_to_the_limit_are_warnings_and_above_it_errors():
    warning = run(2 / 3, desk=rows("HI", "ho", "HU"))[0].message()
    assert isinstance(warning, str)
    assert warning.splitlines()[0] == "sources.desk: the check 'loud' has findings in 2 of its 3 rows"
    error = run(0.5, desk=rows("HI", "ho", "HU"))[0].message()
    assert isinstance(error, HarnessError)
    assert "a.jsonl:1: capitals (training desk), a.jsonl:3: " in error.what
    assert error.hint == "fix these rows, or raise checks.loud.allowed (0.5) to 0.667"
    assert run(0, desk=rows("hi"))[0].message() is None


def test_findings_join_those_of_the_core():
    settings = {"untrained": None, "near_duplicates": None, "contamination": None}
    findings = analyze_data({"desk": rows("HI")}, {}, settings, seed=0).with_check_results(run(0, desk=rows("HI")))
    assert [error.where for error in findings.failures] == ["sources.desk", "evaluate.held"]
    assert set(findings.to_dict()["plugins"]["loud"]) == {"sources.desk", "evaluate.held"}


def test_a_check_that_yields_something_else_is_named():
    class Wrong(Check):
        def find_issues(self, rows, *, name, is_training):
            yield "a.jsonl:1"

    with pytest.raises(ComponentError, match="find_issues: yielded a str, not a Finding, at index 0"):
        run_plugin_checks({"wrong": (Wrong(), None)}, {"desk": rows("x")}, {})


def test_what_a_check_needs_is_named_with_its_key():
    (error,) = unavailable_check_errors({"loud": (Shouting(), None)})
    assert str(error) == "checks.loud: shouting: no microphone; pip install ears"
