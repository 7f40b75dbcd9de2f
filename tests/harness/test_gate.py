"""A gate uses the bound that is nearest to violating a condition, in the right direction for every metric."""

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
    return {"score": score, "summary": None, "judge_by": "bound", "tier": "blocks", **dict.fromkeys(gate.TESTS), **test}


def score_for_gate(
    low: float, value: float, high: float, *, higher_is_better: bool = True, n: int = 50
) -> ScoreForGate:
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
def test_bound_decides_not_value(test: str, limit: float, bounds: tuple[float, float, float], passed: bool) -> None:
    (result,) = evaluate_gate([condition("general/nll", **{test: limit})], {"general/nll": score_for_gate(*bounds)})
    assert result.passed is passed


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
def test_gains_and_losses_follow_metric_direction(
    higher_is_better: bool, test: str, bounds: tuple[float, float, float], passed: bool
) -> None:
    score = score_for_gate(*bounds, higher_is_better=higher_is_better)
    (result,) = evaluate_gate([condition("suite/score", **{test: 0.1})], {"suite/score": score})
    assert result.passed is passed


@pytest.mark.parametrize(
    ("bounds", "n", "outcome"),
    [
        ((-0.02, 0.0, 0.5), 30, "passed"),
        ((-0.3, -0.2, -0.11), 30, "failed"),
        ((-0.3, -0.05, 0.2), 30, "not enough evidence"),
        ((-0.02, 0.0, 0.5), 29, "not enough evidence"),
        ((-0.3, -0.2, -0.11), 29, "not enough evidence"),
        ((-math.inf, 0.0, math.inf), 30, "not enough evidence"),
    ],
)
def test_gate_has_three_outcomes_and_never_passes_below_30_items(bounds, n, outcome) -> None:
    for higher_is_better in (True, False):
        sign = 1 if higher_is_better else -1
        low, value, high = sorted(sign * bound for bound in bounds)
        score = score_for_gate(low, value, high, higher_is_better=higher_is_better, n=n)
        (result,) = evaluate_gate([condition("a/b", loses_at_most=0.1)], {"a/b": score})
        assert result.outcome == outcome
        assert result.bound == sign * bounds[0], "the end that is nearest to violating the condition"


def test_blocking_conditions_decide_and_warning_ones_do_not() -> None:
    scores = {"a/b": score_for_gate(-0.3, -0.2, -0.15), "a/c": score_for_gate(-0.3, 0.0, 0.3)}
    lost, unclear = condition("a/b", loses_at_most=0.1), condition("a/c", loses_at_most=0.1)

    def outcome(*conditions: dict[str, Any]) -> str:
        return gate.gate_outcome(evaluate_gate(conditions, scores))

    assert outcome() == "passed"
    assert outcome(unclear) == "not enough evidence"
    assert outcome(unclear, lost) == "failed"
    assert outcome(unclear, {**lost, "tier": "warns"}) == "not enough evidence"
    assert outcome({**unclear, "tier": "warns"}, {**lost, "tier": "warns"}) == "passed"
    (result,) = evaluate_gate([{**lost, "tier": "warns"}], scores)
    assert result.format_line().startswith("FAILED (warns): a/b must lose at most 0.1")


def test_judge_by_value_uses_value_only() -> None:
    scores = {"general/nll": score_for_gate(-0.2, 0.04, 0.3)}
    by_bound, by_value = evaluate_gate(
        [condition("general/nll", rises_at_most=0.05), condition("general/nll", rises_at_most=0.05, judge_by="value")],
        scores,
    )
    assert (by_bound.passed, by_value.passed) == (False, True)
    assert by_bound.bound == 0.3
    assert by_value.bound == 0.04
    few = {"general/nll": score_for_gate(-0.2, 0.04, 0.3, n=3)}
    (result,) = evaluate_gate([condition("general/nll", rises_at_most=0.05, judge_by="value")], few)
    assert result.format_line().endswith("n = 3, by the value alone, without its interval")


def test_condition_without_interval_lacks_evidence_and_says_why() -> None:
    scores = {"general/nll": score_for_gate(NAN, -0.5, NAN, n=1)}
    (result,) = evaluate_gate([condition("general/nll", rises_at_most=0.05)], scores)
    assert not result.passed
    assert "n = 1 is too few for an interval" in result.format_line()


def test_matrix_summary_is_tested_by_its_level() -> None:
    summary = ScoreForGate(Estimate(-0.02, 0.01, -0.04, 0.0, 80), None, True)
    summary_condition = condition("rougeL", summary="backward_transfer", at_least=-0.05)
    (result,) = evaluate_gate([summary_condition], {"backward_transfer:rougeL": summary})
    assert result.passed
    assert "backward_transfer of rougeL must be at least -0.05" in result.format_line()


def test_unknown_score_error_lists_measured_scores() -> None:
    with pytest.raises(HarnessError, match=r"no score 'general/nil'.*general/nll"):
        evaluate_gate([condition("general/nil", at_most=1.0)], {"general/nll": score_for_gate(0, 0, 0)})


def test_missing_summary_fails_only_its_condition() -> None:
    """`forgetting` of one stage, or a relative summary for a base score of 0."""
    summary_condition = condition("rougeL", summary="forgetting", at_most=0.1)
    (result,) = evaluate_gate([summary_condition], {"desk/rougeL": score_for_gate(0, 0, 0)})
    assert not result.passed
    assert (
        result.format_line() == "FAILED: forgetting of rougeL must be at most 0.1: the run does not have this summary"
    )
    with pytest.raises(HarnessError, match="no score 'forgetting:chrf'"):
        evaluate_gate([{**summary_condition, "score": "chrf"}], {"desk/rougeL": score_for_gate(0, 0, 0)})


@pytest.mark.parametrize(
    ("invalid_condition", "message"),
    [
        (condition("a/b", summary="forgetting"), "this one has none"),
        (condition("a/b", at_least=1, at_most=2), "at_least, at_most"),
        (condition("b", at_least=1), "does not name its suite"),
        (condition("b", summary="forgetting", gains_at_least=1), "tests a difference"),
    ],
)
def test_invalid_condition_is_rejected(invalid_condition: dict[str, Any], message: str) -> None:
    (error,) = gate.validate_gate([invalid_condition], ["spec.json:3:5 gate.0"])
    assert message in error.what
    assert error.where == "spec.json:3:5 gate.0"
    assert list(gate.validate_gate([condition("a/b", at_least=0.0)], ["x"])) == []


def test_difference_not_relative_to_base_names_its_stage() -> None:
    later = replace(score_for_gate(-0.1, 0.0, 0.1), since="first")
    rise, level = evaluate_gate(
        [condition("desk/nll", rises_at_most=0.2), condition("desk/nll", at_most=2.0)], {"desk/nll": later}
    )
    assert rise.format_line().endswith("n = 50, since 'first': the base was not measured by it")
    assert "since" not in level.format_line(), "a level is not relative to a stage"


def test_summary_uses_long_score_name_only_for_duplicates() -> None:
    first, second, third = (SimpleNamespace(score_names=names) for names in (("acc", "f1"), ("acc",), ("f1x",)))
    assert gate.summary_score_names(
        {"a": {"one": first}, "b": {"one": first}, "c": {"other": second}, "d": {"third": third}}
    ) == {
        ("one", "acc"): "one.acc",
        ("one", "f1"): "f1",
        ("other", "acc"): "other.acc",
        ("third", "f1x"): "f1x",
    }


def test_missing_summary_with_long_name_fails() -> None:
    summary_condition = condition("one.acc", summary="forgetting", at_most=0.1)
    (result,) = evaluate_gate([summary_condition], {"desk/acc": score_for_gate(0, 0, 0)})
    assert not result.passed


def test_a_primary_score_without_a_test_may_lose_at_most_its_margin() -> None:
    score = replace(score_for_gate(-0.04, -0.01, 0.02), margin=0.05)
    (result,) = evaluate_gate([condition("general/rougeL")], {"general/rougeL": score})
    assert (result.outcome, result.limit) == ("passed", 0.05)
    assert result.text == "general/rougeL must lose at most 0.05"
    (result,) = evaluate_gate([condition("general/rougeL")], {"general/rougeL": replace(score, margin=0.03)})
    assert result.outcome == "not enough evidence"
    with pytest.raises(HarnessError, match="is not a primary score and has no margin"):
        evaluate_gate([condition("general/rougeL")], {"general/rougeL": replace(score, margin=None)})
