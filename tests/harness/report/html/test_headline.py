"""The headline_text of a report claims only what the intervals support."""

from __future__ import annotations

import pytest

from harness.gate import GateResult
from harness.report.html.headline import build_run_headline
from harness.report.score_change import ScoreChange
from harness.report.stage_suite_matrix import StageSuiteMatrix
from harness.statistics.intervals import Estimate


def build_change(suite, role, verdict, name="rougeL"):
    sign = -1 if verdict == "worse" else 1
    difference = Estimate(0.2 * sign, 0.02, 0.15 * sign, 0.25 * sign, 40)
    level = Estimate(0.4, 0.1, 0.3, 0.5, 40)
    return ScoreChange(suite, role, name, name, "s", True, 40, level, level, difference, verdict, None, (level, level))


def headline_text(*changes, gate=()):
    return build_run_headline([build_change(*entry) for entry in changes], (), gate).text


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ([("a", "domain", "better"), ("b", "general", "worse")], "A improved; b was partly forgotten."),
        ([("a", "domain", "better"), ("b", "general", "better")], "A improved; b improved too."),
        (
            [("a", "domain", "no evidence"), ("b", "general", "no evidence")],
            "No evidence that a changed; no evidence that b was forgotten.",
        ),
        ([("a", "domain", "worse")], "A got worse."),
        ([("a", "domain", "too few items")], "A has too few items for a verdict."),
        (
            [("a", "domain", "too few items"), ("b", "domain", "too few items")],
            "A and b have too few items for a verdict.",
        ),
        (
            [("a", "domain", "better"), ("a", "domain", "worse", "chrf"), ("b", "general", "worse"),
             ("b", "general", "better", "chrf")],
            "A improved by some scores and got worse by others; b got worse by some scores and improved by others.",
        ),
        ([("b", "general", "worse"), ("c", "general", "worse")], "B and c were partly forgotten."),
        (
            [(name, "general", "worse") for name in "abcd"] + [("e", "general", "no evidence")],
            "4 of 5 general suites were partly forgotten; no evidence that e was forgotten.",
        ),
        ([("a", "domain", "no evidence"), ("a", "domain", "better", "chrf")], "A improved."),
        ([], "Nothing was evaluated: the spec has no suite."),
    ],
)  # fmt: skip
def test_headline_names_improved_and_forgotten_suites(changes, sentence):
    assert headline_text(*changes) == sentence


def test_braces_in_a_suite_name_are_not_formatted():
    assert headline_text(("{0}{", "domain", "better")) == "{0}{ improved."


def test_headline_mentions_the_gate_only_when_it_failed():
    def gate_result(passed):
        return GateResult("a/b is to be at least 1", "passed" if passed else "failed", 0.5, 0.4, 1.0, 40)

    improved = ("a", "domain", "better")
    assert headline_text(improved, gate=[gate_result(False), gate_result(True)]) == "A improved; the gate failed."
    assert headline_text(improved, gate=[gate_result(True)]) == "A improved."
    statements = build_run_headline([build_change(*improved)], (), [gate_result(True)]).statements
    assert (statements[-1].outcome, statements[-1].text) == ("passed", "gate passed: the only condition is met")
    statements = build_run_headline([build_change(*improved)], (), [gate_result(True), gate_result(False)]).statements
    assert statements[-1].text == "gate failed: 1 of 2 conditions not met, first: a/b is to be at least 1"


def test_statement_of_a_suite_shows_its_first_score_with_a_verdict():
    changes = [
        build_change("a", "domain", "no evidence", "bleu"),
        build_change("a", "domain", "better"),
        build_change("a", "domain", "better", "chrf"),
    ]
    (statement,) = build_run_headline(changes, (), ()).statements
    assert statement.text == "a (n = 40): rougeL 0.400 → 0.400, +0.200 [+0.150, +0.250]; better too: chrf"
    assert statement.outcome == "better"


@pytest.mark.parametrize(
    ("low", "high", "outcome", "text"),
    [
        (
            -0.3,
            -0.1,
            "worse",
            "later stages degraded what earlier stages taught: backward transfer −0.200 [−0.300, −0.100]",
        ),
        (-0.1, 0.2, "even", "no evidence that later stages changed what earlier stages taught"),
        (0.1, 0.3, "better", "later stages improved what earlier stages taught"),
    ],
)
def test_backward_transfer_has_a_statement(low, high, outcome, text):
    transfer = Estimate((low + high) / 2, 0.05, low, high, 40)
    matrix = StageSuiteMatrix(
        "rougeL", "rouge", True, ("a",), (1,), (False,), ((0.1,), (0.2,)), {"backward_transfer": transfer}
    )
    statement = build_run_headline([build_change("a", "domain", "better")], (matrix,), ()).statements[1]
    assert statement.outcome == outcome
    assert statement.text.startswith(text)
    assert statement.text.endswith("in rougeL")
