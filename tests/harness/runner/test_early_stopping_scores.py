"""The combined score of early stopping, and the patience, with sums that can be done by hand."""

from __future__ import annotations

import math

import pytest

from harness.runner.early_stopping import EarlyStopping, combined_score


def test_each_score_counts_in_its_direction_relative_to_the_start():
    start = {"a/rougeL": 0.5, "b/ppl": 4.0}
    higher = {"a/rougeL": True, "b/ppl": False}
    value = combined_score({"a/rougeL": 0.6, "b/ppl": 3.0}, start, higher, {"a/rougeL": 1, "b/ppl": 2})
    assert value == pytest.approx(0.1 / 0.5 + 2 * 1.0 / 4.0)
    assert combined_score({"a/rougeL": 0.4, "b/ppl": 5.0}, start, higher, {"a/rougeL": 1, "b/ppl": 2}) < 0


def test_start_values_of_zero_and_below_keep_the_direction():
    assert combined_score({"a/em": 0.2}, {"a/em": 0.0}, {"a/em": True}, {"a/em": 1}) == pytest.approx(0.2)
    assert combined_score({"a/ll": -1.0}, {"a/ll": -2.0}, {"a/ll": True}, {"a/ll": 1}) == pytest.approx(0.5)


def update_with(values, **settings):
    stopping = EarlyStopping({"patience": 2, "min_delta": 0.0, **settings})
    stops = []
    for step, value in enumerate(values, start=1):
        stopping.update(step, value)
        stops.append(stopping.should_stop)
    return stopping, stops


def test_patience_counts_evaluations_in_a_row_since_the_best():
    stopping, stops = update_with([0.1, 0.0, 0.3, 0.2, 0.3])
    assert stops == [False, False, False, False, True]
    assert (stopping.best_step, stopping.best_value) == (3, 0.3)


def test_rise_within_min_delta_is_not_an_improvement():
    stopping, stops = update_with([0.1, 0.15, 0.19], min_delta=0.1)
    assert stopping.best_step == 1
    assert stops[-1]


def test_first_evaluation_below_the_start_is_the_best_so_far():
    assert update_with([-0.5])[0].best_step == 1


def test_nan_and_infinity_are_not_improvements():
    stopping, stops = update_with([math.nan, math.inf, math.nan])
    assert stopping.best_step is None
    assert stops == [False, True, True]
