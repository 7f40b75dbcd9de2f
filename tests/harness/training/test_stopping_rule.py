"""The combined score and when it has not got better for long enough: sums that can be done by hand."""

from __future__ import annotations

import math

import pytest

from harness.runner.early_stopping import EarlyStopping, combined_score


def test_each_score_counts_in_its_own_direction_relative_to_the_start():
    start = {"a/rougeL": 0.5, "b/ppl": 4.0}
    higher = {"a/rougeL": True, "b/ppl": False}
    value = combined_score({"a/rougeL": 0.6, "b/ppl": 3.0}, start, higher, {"a/rougeL": 1, "b/ppl": 2})
    assert value == pytest.approx(0.1 / 0.5 + 2 * 1.0 / 4.0)
    assert combined_score({"a/rougeL": 0.4, "b/ppl": 5.0}, start, higher, {"a/rougeL": 1, "b/ppl": 2}) < 0


def test_a_start_of_nothing_and_one_below_it_keep_the_direction():
    assert combined_score({"a/em": 0.2}, {"a/em": 0.0}, {"a/em": True}, {"a/em": 1}) == pytest.approx(0.2)
    assert combined_score({"a/ll": -1.0}, {"a/ll": -2.0}, {"a/ll": True}, {"a/ll": 1}) == pytest.approx(0.5)


def run(values, **settings):
    stopping = EarlyStopping({"patience": 2, "min_delta": 0.0, **settings})
    overs = []
    for step, value in enumerate(values, start=1):
        stopping.update(step, value)
        overs.append(stopping.should_stop)
    return stopping, overs


def test_patience_counts_evaluations_in_a_row_since_the_best():
    stopping, overs = run([0.1, 0.0, 0.3, 0.2, 0.3])
    assert overs == [False, False, False, False, True]
    assert (stopping.best_step, stopping.best_value) == (3, 0.3)


def test_a_rise_within_min_delta_is_no_improvement():
    stopping, overs = run([0.1, 0.15, 0.19], min_delta=0.1)
    assert stopping.best_step == 1
    assert overs[-1]


def test_a_first_evaluation_below_the_start_is_still_the_best_so_far():
    assert run([-0.5])[0].best_step == 1


def test_what_is_no_number_is_no_improvement():
    stopping, overs = run([math.nan, math.inf, math.nan])
    assert stopping.best_step is None
    assert overs == [False, True, True]
