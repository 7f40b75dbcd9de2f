"""The first sentence of a report claims what its intervals support, and nothing else."""

from __future__ import annotations

import pytest

from harness.gate import GateResult
from harness.report.html.headline import build_run_headline
from harness.report.run_report import ScoreChange
from harness.report.stage_suite_matrix import StageSuiteMatrix
from harness.statistics.intervals import Estimate


def change(suite, role, told, name="rougeL"):
    sign = -1 if told == "worse" else 1
    moved = Estimate(0.2 * sign, 0.02, 0.15 * sign, 0.25 * sign, 40)
    level = Estimate(0.4, 0.1, 0.3, 0.5, 40)
    return ScoreChange(suite, role, name, name, "s", True, 40, level, level, moved, told, None, (level, level))


def headline(*told, gate=()):
    return build_run_headline([change(*one) for one in told], (), gate).text


@pytest.mark.parametrize(
    ("told", "sentence"),
    [
        ([("a", "domain", "better"), ("b", "general", "worse")], "A got better; b was partly forgotten."),
        ([("a", "domain", "better"), ("b", "general", "better")], "A got better; b got better too."),
        (
            [("a", "domain", "no evidence"), ("b", "general", "no evidence")],
            "No evidence that a changed; no evidence that b was forgotten.",
        ),
        ([("a", "domain", "worse")], "A got worse."),
        ([("a", "domain", "too few items")], "A has too few items to tell."),
        ([("a", "domain", "too few items"), ("b", "domain", "too few items")], "A and b have too few items to tell."),
        (
            [("a", "domain", "better"), ("a", "domain", "worse", "chrf"), ("b", "general", "worse"),
             ("b", "general", "better", "chrf")],
            "A got better by some scores and worse by others; b got worse by some scores and better by others.",
        ),
        ([("b", "general", "worse"), ("c", "general", "worse")], "B and c were partly forgotten."),
        (
            [(name, "general", "worse") for name in "abcd"] + [("e", "general", "no evidence")],
            "4 of 5 general suites were partly forgotten; no evidence that e was forgotten.",
        ),
        ([("a", "domain", "no evidence"), ("a", "domain", "better", "chrf")], "A got better."),
        ([], "Nothing was evaluated: the spec has no suite."),
    ],
)  # fmt: skip
def test_the_headline_names_what_got_better_and_what_was_forgotten(told, sentence):
    assert headline(*told) == sentence


def test_a_name_with_braces_is_no_place_to_fill():
    assert headline(("{0}{", "domain", "better")) == "{0}{ got better."


def test_the_gate_is_in_the_headline_when_it_failed():
    def judged(passed):
        return GateResult("a/b is to be at least 1", passed, 0.5, 0.4, 1.0, 40)

    one = ("a", "domain", "better")
    assert headline(one, gate=[judged(False), judged(True)]) == "A got better; the gate failed."
    assert headline(one, gate=[judged(True)]) == "A got better."
    lines = build_run_headline([change(*one)], (), [judged(True)]).statements
    assert (lines[-1].outcome, lines[-1].text) == ("passed", "gate passed: its one condition is met")
    lines = build_run_headline([change(*one)], (), [judged(True), judged(False)]).statements
    assert lines[-1].text == "gate failed: 1 of 2 conditions not met, first: a/b is to be at least 1"


def test_each_suite_has_a_line_with_the_numbers_of_its_first_telling_score():
    told = [
        change("a", "domain", "no evidence", "bleu"),
        change("a", "domain", "better"),
        change("a", "domain", "better", "chrf"),
    ]
    (line,) = build_run_headline(told, (), ()).statements
    assert line.text == "a (n = 40): rougeL 0.400 → 0.400, +0.200 [+0.150, +0.250]; better too: chrf"
    assert line.outcome == "better"


@pytest.mark.parametrize(
    ("low", "high", "kind", "told"),
    [
        (
            -0.3,
            -0.1,
            "worse",
            "later stages cost what earlier ones had taught: backward transfer −0.200 [−0.300, −0.100]",
        ),
        (-0.1, 0.2, "even", "no evidence that later stages changed what earlier ones had taught"),
        (0.1, 0.3, "better", "later stages helped"),
    ],
)
def test_what_later_stages_did_to_earlier_ones_is_told(low, high, kind, told):
    moved = Estimate((low + high) / 2, 0.05, low, high, 40)
    matrix = StageSuiteMatrix(
        "rougeL", "rouge", True, ("a",), (1,), (False,), ((0.1,), (0.2,)), {"backward_transfer": moved}
    )
    line = build_run_headline([change("a", "domain", "better")], (matrix,), ()).statements[1]
    assert line.outcome == kind
    assert line.text.startswith(told)
    assert line.text.endswith("in rougeL")
