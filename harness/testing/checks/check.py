"""The contract of data checks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from harness.testing.component_under_test import CheckSkipped, ComponentUnderTest, require
from harness.types import Example, Finding, Message, ToolCall

ROWS = (
    Example("0" * 16, (Message("user", "What is tea?"), Message("assistant", "A drink.")), "rows.jsonl:1"),
    Example("1" * 16, (Message("text", "A plain text."),), "rows.jsonl:2"),
    Example(
        "2" * 16,
        (
            Message("system", "Be brief."),
            Message("user", "Weather?", input="in Bonn"),
            Message("assistant", "", tool_calls=(ToolCall("weather", {"city": "Bonn"}),)),
            Message("tool", '{"sky": "blue"}', name="weather"),
            Message("assistant", "Blue.", reasoning="The tool says so."),
        ),
        "rows.jsonl:3",
        tools=({"name": "weather", "parameters": {"type": "object"}},),
    ),
)
"""A conversation, a plain text, and a conversation with tools."""


def check_rows(subject: ComponentUnderTest) -> None:
    """Every kind of row can be checked, and each finding has the location of a row."""
    locations = {example.location for example in ROWS}
    for is_training in (True, False):
        for finding in _find(subject, ROWS, is_training):
            require(finding.location in locations, f"a finding has the location {finding.location!r}, which no row has")
    require(not _find(subject, (), True), "it has findings without any row")


def check_same_findings(subject: ComponentUnderTest) -> None:
    """It finds the same in the same rows every time."""
    rows = (*ROWS, *_flagged_rows(subject))
    require(_find(subject, rows, True) == _find(subject, rows, True), "the findings of two instances differ")


def check_flagged_text(subject: ComponentUnderTest) -> None:
    """It has a finding in the text of the example, one line each."""
    rows = _flagged_rows(subject)
    if not rows:
        raise CheckSkipped("its example has no `flagged`: declare Component(example=ComponentExample(flagged=…))")
    findings = [finding for is_training in (True, False) for finding in _find(subject, rows, is_training)]
    require(findings, f"it finds nothing in {subject.example.flagged!r}")
    require(all(finding.text.strip() and "\n" not in finding.text for finding in findings), "a text is not one line")


def _flagged_rows(subject: ComponentUnderTest) -> tuple[Example, ...]:
    text = subject.example.flagged
    if text is None:
        return ()
    return (Example("3" * 16, (Message("user", text), Message("assistant", text)), "rows.jsonl:4"),)


def _find(subject: ComponentUnderTest, rows: Sequence[Example], is_training: bool) -> list[Finding]:
    """Return the findings. The rows can be read once only, as those of a run."""

    def read_once() -> Iterator[Example]:
        yield from rows

    check = subject.create()
    check.check_available()
    return list(check.find_issues(read_once(), name="desk", is_training=is_training))


CHECKS = (check_rows, check_same_findings, check_flagged_text)
