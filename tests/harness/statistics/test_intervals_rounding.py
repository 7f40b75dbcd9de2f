"""Whether an interval holds its value, and whether a verdict hangs on the last digit of a sum."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness import gate
from harness.report.run_report import verdict_of_difference
from harness.statistics import forgetting
from harness.statistics.intervals import Estimate, difference, estimate, estimate_from_replicates, replicates
from harness.statistics.significance import approximate_randomization, paired_bootstrap


def mean(total):
    return total[0] / total[1]


def perplexity(total):
    return math.exp(total[0] / total[1])


@pytest.mark.parametrize("n", [1, 2, 3, 7, 30, 100, 1_000, 10_000])
@pytest.mark.parametrize("aggregate", [mean, perplexity], ids=["mean", "perplexity"])
@pytest.mark.parametrize("shift", [0.1, -0.05, 0.3, 1e-3])
def test_equal_differences_are_in_their_interval_whichever_way_it_is_made(n, aggregate, shift):
    draw = random.Random(n)
    before = [(draw.random(), 1.0) for _ in range(n)]
    after = [(value + shift, 1.0) for value, _ in before]
    made = [
        difference(before, after, aggregate, seed=1, resamples=50, ratio=aggregate is mean),
        difference(before, after, aggregate, seed=1, resamples=50),
        estimate(before, aggregate, seed=1, resamples=50),
        estimate([(0.1, 1.0)] * n, aggregate, seed=1, resamples=50),
        paired_bootstrap(before, after, aggregate, seed=1, resamples=50)[0],
    ]
    values, drawn = replicates([before, after], aggregate, seed=1, resamples=50)
    made.append(estimate_from_replicates(float(values[1] - values[0]), drawn[:, 1] - drawn[:, 0], n))
    for one in made:
        assert (n == 1 and math.isnan(one.low)) or one.low <= one.value <= one.high


@settings(max_examples=200, deadline=None)
@given(
    st.floats(-1e6, 1e6),
    st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=40),
)
def test_an_interval_of_replicates_holds_the_value_that_it_is_given_for(value, drawn):
    made = estimate_from_replicates(value, np.array(drawn), 10)
    assert made.low <= made.value <= made.high


def test_an_interval_that_is_no_number_stays_none():
    made = Estimate(1.0, math.nan, math.nan, math.nan, 1)
    assert math.isnan(made.low)
    assert math.isnan(made.high)


@pytest.mark.parametrize("n", [30, 300, 3_000])
@pytest.mark.parametrize("ratio", [True, False])
def test_the_same_numbers_in_another_order_are_no_evidence_of_a_change(n, ratio):
    """Each item's statistics are the same number, which two machines (or two batches) rounded differently."""
    draw = random.Random(n)
    before = [(draw.random() * 100, 1.0) for _ in range(n)]
    after = [(float(np.nextafter(value, np.inf)), 1.0) for value, _ in before]
    made = difference(before, after, mean, seed=1, resamples=50, ratio=ratio)
    assert (made.value, made.low, made.high) == (0.0, 0.0, 0.0)
    assert verdict_of_difference(made, True) == "no evidence"
    assert paired_bootstrap(before, after, mean, seed=1, resamples=200)[1] == 1.0
    assert approximate_randomization(before, after, mean, seed=1, trials=200) == 1.0


def test_a_gate_at_its_very_limit_passes_whichever_way_the_sum_was_rounded():
    condition = {"score": "a/x", "loses_at_most": 0.1, "judge_by": "bound", "summary": None}
    condition |= {name: None for name in gate.TESTS if name != "loses_at_most"}
    for lost in (0.1, 0.1 + 1e-15, 0.1 - 1e-15):
        change = Estimate(-lost, 0.0, -lost, -lost, 30)
        (judged,) = gate.evaluate_gate([condition], {"a/x": gate.ScoreForGate(change, change, True)})
        assert judged.passed
    beyond = Estimate(-0.1001, 0.0, -0.1001, -0.1001, 30)
    (judged,) = gate.evaluate_gate([condition], {"a/x": gate.ScoreForGate(beyond, beyond, True)})
    assert not judged.passed


def test_arms_that_differ_by_rounding_alone_are_both_efficient():
    assert forgetting.pareto([(1.0, 0.1), (1.0 + 1e-15, 0.1), (1.0, 0.1 + 1e-16)]) == (0, 1, 2)
    assert forgetting.pareto([(1.0, 0.1), (1.001, 0.1)]) == (1,)
