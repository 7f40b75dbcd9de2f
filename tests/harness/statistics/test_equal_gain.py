"""Forgetting at a given gain against closed forms and a bootstrap."""

from __future__ import annotations

import math

import numpy as np
import pytest

from harness.statistics.equal_gain import Crossing, find_crossing, loss_at_crossing
from harness.statistics.seeds import linearize, of_suite, pool_over_seeds


def mean_of(values, suite):
    return of_suite(
        linearize([(value, 1.0) for value in values], lambda sums: sums[0] / sums[1], range(len(values))), suite
    )


@pytest.mark.parametrize(
    ("gains", "target", "expected"),
    [
        ([0.0, 1.0, 3.0], 2.0, Crossing(1, 0.5)),
        ([0.0, 1.0, 3.0], 3.0, Crossing(1, 1.0)),
        ([0.0, 2.0, 1.0, 3.0], 1.5, Crossing(0, 0.75)),
        ([0.0, -1.0, 1.0], 0.5, Crossing(1, 0.75)),
        ([0.0, 1.0], 1.5, None),
    ],
)
def test_the_first_crossing_is_interpolated_linearly(gains, target, expected):
    assert find_crossing(gains, target) == expected


def test_interval_agrees_with_a_bootstrap_of_the_whole_computation():
    rng = np.random.default_rng(0)
    gain_items = [np.zeros(200), rng.normal(1.0, 0.8, 200), rng.normal(3.0, 1.5, 200)]
    loss_items = [np.zeros(150), rng.normal(0.2, 0.5, 150), rng.normal(1.4, 1.0, 150)]
    target = 2.0

    def interpolate(gains, losses):
        share = (target - gains[1]) / (gains[2] - gains[1])
        return (1 - share) * losses[1] + share * losses[2]

    gains, losses = ([mean_of(each, name) for each in items] for items, name in ((gain_items, "g"), (loss_items, "f")))
    crossing = find_crossing([number.value for number in gains], target)
    assert crossing is not None
    result = loss_at_crossing(gains, losses, crossing)
    assert result.value == pytest.approx(interpolate([x.mean() for x in gain_items], [x.mean() for x in loss_items]))
    draws = []
    for _ in range(4000):
        rows, columns = rng.integers(0, 200, 200), rng.integers(0, 150, 150)
        draws.append(interpolate([x[rows].mean() for x in gain_items], [x[columns].mean() for x in loss_items]))
    assert pool_over_seeds([result]).estimate.stderr == pytest.approx(np.std(draws), rel=0.06)


def test_without_a_slope_the_gain_adds_no_uncertainty():
    values = [math.sin(index) for index in range(50)]
    gains = [mean_of([0.0] * 50, "g"), mean_of([2 + value for value in values], "g")]
    losses = [mean_of(values, "f"), mean_of(values, "f")]
    result = loss_at_crossing(gains, losses, Crossing(0, 0.5))
    expected = pool_over_seeds([losses[1]]).estimate.stderr
    assert pool_over_seeds([result]).estimate.stderr == pytest.approx(expected, rel=0.01)  # n / (n - 1) of 100, not 50
