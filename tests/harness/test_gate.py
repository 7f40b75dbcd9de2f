"""Gates judge by the bound that is nearest to breaking them, in the right direction for every metric."""

from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from harness import gate
from harness.errors import HarnessError
from harness.gate import ScoreForGate, evaluate_gate
from harness.statistics.intervals import Estimate

NAN = math.nan


def condition(score: str, **test: Any) -> dict[str, Any]:
    return {"score": score, "summary": None, "judge_by": "bound", **dict.fromkeys(gate.TESTS), **test}


def measured(low: float, value: float, high: float, *, higher_is_better: bool = True, n: int = 50) -> ScoreForGate:
    difference = Estimate(value, 0.1, low, high, n)
    after = Estimate(value + 1, 0.1, low + 1, high + 1, n)
    return ScoreForGate(after, difference, higher_is_better)


@pytest.mark.parametrize(
    ("test", "limit", "bounds", "passed"),
    [
        ("rises_at_most", 0.05, (-0.02, 0.01, 0.04), True),
        ("rises_at_most", 0.05, (-0.02, 0.01, 0.06), False),
        ("falls_at_most", 0.05, (-0.04, 0.01, 0.9), True),
        ("falls_at_most", 0.05, (-0.06, 0.01, 0.9), False),
        ("rises_at_least", 0.1, (0.11, 0.2, 0.3), True),
        ("rises_at_least", 0.1, (0.09, 0.2, 0.3), False),
        ("falls_at_least", 0.1, (-0.3, -0.2, -0.11), True),
        ("falls_at_least", 0.1, (-0.3, -0.2, -0.09), False),
        ("at_least", 1.1, (0.11, 0.2, 0.3), True),
        ("at_least", 1.1, (0.09, 0.2, 0.3), False),
        ("at_most", 1.1, (0.0, 0.05, 0.09), True),
        ("at_most", 1.1, (0.0, 0.05, 0.11), False),
    ],
)
def test_the_bound_and_not_the_value_is_judged(
    test: str, limit: float, bounds: tuple[float, float, float], passed: bool
) -> None:
    (found,) = evaluate_gate([condition("general/nll", **{test: limit})], {"general/nll": measured(*bounds)})
    assert found.passed is passed


@pytest.mark.parametrize(
    ("higher_is_better", "test", "bounds", "passed"),
    [
        (True, "gains_at_least", (0.11, 0.2, 0.3), True),
        (True, "gains_at_least", (0.09, 0.2, 0.3), False),
        (False, "gains_at_least", (-0.3, -0.2, -0.11), True),
        (False, "gains_at_least", (-0.3, -0.2, -0.09), False),
        (False, "gains_at_least", (0.11, 0.2, 0.3), False),
        (True, "loses_at_most", (-0.09, 0.0, 0.5), True),
        (True, "loses_at_most", (-0.11, 0.0, 0.5), False),
        (False, "loses_at_most", (-0.5, 0.0, 0.09), True),
        (False, "loses_at_most", (-0.5, 0.0, 0.11), False),
    ],
)
def test_gains_and_losses_follow_the_direction_of_the_metric(
    higher_is_better: bool, test: str, bounds: tuple[float, float, float], passed: bool
) -> None:
    score = measured(*bounds, higher_is_better=higher_is_better)
    (found,) = evaluate_gate([condition("suite/score", **{test: 0.1})], {"suite/score": score})
    assert found.passed is passed


def test_a_spec_may_judge_by_the_value_alone() -> None:
    scores = {"general/nll": measured(-0.2, 0.04, 0.3)}
    by_bound, by_value = evaluate_gate(
        [condition("general/nll", rises_at_most=0.05), condition("general/nll", rises_at_most=0.05, judge_by="value")],
        scores,
    )
    assert (by_bound.passed, by_value.passed) == (False, True)
    assert by_bound.bound == 0.3
    assert by_value.bound == 0.04


def test_without_an_interval_a_condition_fails_and_says_why() -> None:
    scores = {"general/nll": measured(NAN, -0.5, NAN, n=1)}
    (found,) = evaluate_gate([condition("general/nll", rises_at_most=0.05)], scores)
    assert not found.passed
    assert "n = 1 gives no interval" in found.format_line()


def test_a_summary_of_the_matrix_is_judged_by_its_level() -> None:
    summary = ScoreForGate(Estimate(-0.02, 0.01, -0.04, 0.0, 80), None, True)
    asked = condition("rougeL", summary="backward_transfer", at_least=-0.05)
    (found,) = evaluate_gate([asked], {"backward_transfer:rougeL": summary})
    assert found.passed
    assert "backward_transfer of rougeL is to be at least -0.05" in found.format_line()


def test_a_score_that_was_not_measured_is_named_with_those_that_were() -> None:
    with pytest.raises(HarnessError, match=r"no score 'general/nil'.*general/nll"):
        evaluate_gate([condition("general/nil", at_most=1.0)], {"general/nll": measured(0, 0, 0)})


def test_a_summary_that_the_run_does_not_come_to_fails_and_costs_nothing_else() -> None:
    """`forgetting` of one stage; a relative one of a base that scores 0."""
    asked = condition("rougeL", summary="forgetting", at_most=0.1)
    (found,) = evaluate_gate([asked], {"desk/rougeL": measured(0, 0, 0)})
    assert not found.passed
    assert found.format_line() == "FAILED: forgetting of rougeL is to be at most 0.1: the run has no such number"
    with pytest.raises(HarnessError, match="no score 'forgetting:chrf'"):
        evaluate_gate([{**asked, "score": "chrf"}], {"desk/rougeL": measured(0, 0, 0)})


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (condition("a/b"), "this names none"),
        (condition("a/b", at_least=1, at_most=2), "at_least, at_most"),
        (condition("b", at_least=1), "does not say of which suite"),
        (condition("b", summary="forgetting", gains_at_least=1), "is about a difference"),
    ],
)
def test_a_condition_that_says_nothing_definite_is_refused(given: dict[str, Any], told: str) -> None:
    (error,) = gate.validate_gate([given], ["spec.json:3:5 gate.0"])
    assert told in error.what
    assert error.where == "spec.json:3:5 gate.0"
    assert list(gate.validate_gate([condition("a/b", at_least=0.0)], ["x"])) == []


def test_a_difference_that_is_not_to_the_base_says_since_when() -> None:
    later = replace(measured(-0.1, 0.0, 0.1), since="first")
    rise, level = evaluate_gate(
        [condition("desk/nll", rises_at_most=0.2), condition("desk/nll", at_most=2.0)], {"desk/nll": later}
    )
    assert rise.format_line().endswith("n = 50, since 'first': the base was not measured by it")
    assert "since" not in level.format_line(), "a level is a level, whatever came before"


def test_summaries_call_a_score_by_its_name_unless_two_metrics_give_it() -> None:
    one, other, third = (SimpleNamespace(score_names=names) for names in (("acc", "f1"), ("acc",), ("f1x",)))
    assert gate.summary_score_names(
        {"a": {"one": one}, "b": {"one": one}, "c": {"other": other}, "d": {"third": third}}
    ) == {
        ("one", "acc"): "one.acc",
        ("one", "f1"): "f1",
        ("other", "acc"): "other.acc",
        ("third", "f1x"): "f1x",
    }


def test_a_summary_by_the_long_name_that_the_run_does_not_come_to_fails_like_any_other() -> None:
    asked = condition("one.acc", summary="forgetting", at_most=0.1)
    (found,) = evaluate_gate([asked], {"desk/acc": measured(0, 0, 0)})
    assert not found.passed
