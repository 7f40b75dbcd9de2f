"""Intervals contain their value, and verdicts do not depend on the last digit of a sum."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.paired import difference

from harness import gate
from harness.report.score_change import verdict_of_difference
from harness.statistics import forgetting
from harness.statistics.intervals import Estimate, estimate, mean_over_suites, paired_test
from harness.statistics.significance import approximate_randomization


def mean(total):
    return total[0] / total[1]


def perplexity(total):
    return math.exp(total[0] / total[1])


@pytest.mark.slow
@pytest.mark.parametrize("n", [1, 2, 3, 7, 30, 100, 1_000, 10_000])
@pytest.mark.parametrize("aggregate", [mean, perplexity], ids=["mean", "perplexity"])
@pytest.mark.parametrize("shift", [0.1, -0.05, 0.3, 1e-3])
def test_every_interval_contains_equal_differences(n, aggregate, shift):
    generator = random.Random(n)
    before = [(generator.random(), 1.0) for _ in range(n)]
    after = [(value + shift, 1.0) for value, _ in before]
    estimates = [
        difference(before, after, aggregate, ratio=aggregate is mean),
        difference(before, after, aggregate),
        difference(before, after, aggregate, groups=[index // 2 for index in range(n)]),
        estimate(before, aggregate),
        estimate([(0.1, 1.0)] * n, aggregate, ratio=aggregate is mean),
    ]
    estimates.append(mean_over_suites(estimates))
    for result in estimates:
        assert (n <= 2 and math.isnan(result.low)) or result.low <= result.value <= result.high


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.floats(-1e6, 1e6), st.floats(-1e6, 1e6)), min_size=2, max_size=40))
def test_interval_contains_its_value(pairs):
    before, after = ([(pair[side], 1.0) for pair in pairs] for side in (0, 1))
    for result in (estimate(before, mean, ratio=True), difference(before, after, mean, ratio=True)):
        assert result.low <= result.value <= result.high


def test_nan_interval_stays_nan():
    result = Estimate(1.0, math.nan, math.nan, math.nan, 1)
    assert math.isnan(result.low)
    assert math.isnan(result.high)


@pytest.mark.parametrize("n", [30, 300, 3_000])
@pytest.mark.parametrize("ratio", [True, False])
def test_rounding_differences_are_no_evidence_of_change(n, ratio):
    """Each item's statistics are the same number, which two machines (or two batches) rounded differently."""
    generator = random.Random(n)
    before = [(generator.random() * 100, 1.0) for _ in range(n)]
    after = [(float(np.nextafter(value, np.inf)), 1.0) for value, _ in before]
    result = paired_test(before, after, mean, ratio=ratio)
    assert (result.difference.value, result.p) == (0.0, 1.0)
    assert result.difference.low <= 0.0 <= result.difference.high
    assert verdict_of_difference(result.difference, True) == "no evidence"
    assert approximate_randomization(before, after, mean, seed=1, trials=200) == 1.0


def test_gate_at_its_limit_passes_despite_rounding():
    condition = {"score": "a/x", "loses_at_most": 0.1, "judge_by": "bound", "tier": "blocks", "summary": None}
    condition |= {name: None for name in gate.TESTS if name != "loses_at_most"}
    for lost in (0.1, 0.1 + 1e-15, 0.1 - 1e-15):
        change = Estimate(-lost, 0.0, -lost, -lost, 30)
        (gate_result,) = gate.evaluate_gate([condition], {"a/x": gate.ScoreForGate(change, change, True)})
        assert gate_result.passed
    beyond = Estimate(-0.1001, 0.0, -0.1001, -0.1001, 30)
    (gate_result,) = gate.evaluate_gate([condition], {"a/x": gate.ScoreForGate(beyond, beyond, True)})
    assert not gate_result.passed


def test_arms_that_differ_by_rounding_only_are_both_efficient():
    assert forgetting.pareto([(1.0, 0.1), (1.0 + 1e-15, 0.1), (1.0, 0.1 + 1e-16)]) == (0, 1, 2)
    assert forgetting.pareto([(1.0, 0.1), (1.001, 0.1)]) == (1,)
