"""Closed forms of standard errors and intervals against the bootstrap, textbooks and simulation."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest

from harness.statistics.intervals import difference, estimate, wilson


def mean(total):
    return total[0] / total[1]


def items_of_equal_size(n, seed=0, scale=2.0):
    generator = random.Random(seed)
    return [(generator.gauss(1.0, scale), 1.0) for _ in range(n)]


def items_of_different_size(n, seed=0):
    """Return sums over items of very different sizes, such as nats over tokens."""
    generator = random.Random(seed)
    sizes = [float(generator.randint(1, 60)) for _ in range(n)]
    return [(size * generator.uniform(0.5, 3.0), size) for size in sizes]


def test_wilson_interval_has_known_bounds():
    assert wilson(60, 100) == pytest.approx((0.5020, 0.6906), abs=5e-5)
    assert wilson(0, 10) == pytest.approx((0.0, 0.2775), abs=5e-5)
    assert wilson(10, 10) == pytest.approx((0.7225, 1.0), abs=5e-5)


def test_proportion_has_wilson_interval_and_binomial_error():
    result = estimate([(1.0, 1.0)] * 60 + [(0.0, 1.0)] * 40, mean, seed=0, ratio=True)
    assert result.method == "wilson"
    assert (result.low, result.high) == pytest.approx(wilson(60, 100))
    assert result.stderr == math.sqrt(0.6 * 0.4 / 100)


def test_proportion_of_one_has_a_lower_bound_below_one():
    result = estimate([(1.0, 1.0)] * 20, mean, seed=0, ratio=True)
    assert (result.value, result.stderr, result.high) == (1.0, 0.0, 1.0)
    assert result.low < 0.85
    assert estimate([(1.0, 1.0)] * 20, mean, seed=0).low == 1.0  # the bootstrap interval


def test_mean_has_student_interval():
    result = estimate([(value, 1.0) for value in (1.0, 2.0, 4.0)], mean, seed=0, ratio=True)
    error = np.std([1, 2, 4], ddof=1) / math.sqrt(3)
    assert result.method == "t"
    assert result.stderr == pytest.approx(error)
    assert result.high - result.value == pytest.approx(4.302652729911275 * error)  # t table, 2 degrees, 97.5 %


@pytest.mark.parametrize(
    ("items", "method"), [(items_of_equal_size(300), "t"), (items_of_different_size(300), "delta")]
)
def test_closed_forms_agree_with_the_bootstrap(items, method):
    closed, resampled = (estimate(items, mean, seed=1, resamples=8000, ratio=ratio) for ratio in (True, False))
    assert (closed.method, resampled.method) == (method, "bootstrap")
    assert closed.value == resampled.value
    assert closed.stderr == pytest.approx(resampled.stderr, rel=0.05)
    assert (closed.low, closed.high) == pytest.approx((resampled.low, resampled.high), abs=0.25 * closed.stderr)


def test_paired_differences_agree_with_the_bootstrap():
    for before in (items_of_equal_size(300), items_of_different_size(300)):
        generator = random.Random(9)
        after = [(total + size * generator.gauss(0.2, 0.3), size) for total, size in before]
        closed, resampled = (
            difference(before, after, mean, seed=1, resamples=8000, ratio=ratio) for ratio in (True, False)
        )
        assert closed.value == pytest.approx(resampled.value)
        assert closed.stderr == pytest.approx(resampled.stderr, rel=0.05)
        assert closed.stderr < estimate(before, mean, seed=0, ratio=True).stderr
        assert (closed.low, closed.high) == pytest.approx((resampled.low, resampled.high), abs=0.25 * closed.stderr)


def test_constant_factor_scales_the_estimate():
    plain = estimate(items_of_different_size(50), mean, seed=0, ratio=True)
    scaled = estimate(items_of_different_size(50), lambda total: 100 * total[0] / total[1], seed=0, ratio=True)
    assert scaled.stderr == pytest.approx(100 * plain.stderr)
    assert (scaled.low, scaled.high) == pytest.approx((100 * plain.low, 100 * plain.high))
    proportion = estimate([(1.0, 1.0), (0.0, 1.0)] * 5, lambda total: 100 * total[0] / total[1], seed=0, ratio=True)
    assert (proportion.low, proportion.high) == pytest.approx(tuple(100 * bound for bound in wilson(5, 10)))


@pytest.mark.parametrize("n", [8, 40])
def test_interval_covers_the_truth_in_95_percent(n):
    generator = random.Random(3)
    hits = {"t": 0, "wilson": 0}
    for _ in range(600):
        mean_estimate = estimate([(generator.gauss(0, 1), 1.0) for _ in range(n)], mean, seed=0, ratio=True)
        proportion_estimate = estimate(
            [(float(generator.random() < 0.7), 1.0) for _ in range(n)], mean, seed=0, ratio=True
        )
        hits["t"] += mean_estimate.low <= 0 <= mean_estimate.high
        hits["wilson"] += proportion_estimate.low <= 0.7 <= proportion_estimate.high
    assert all(0.92 < count / 600 < 0.985 for count in hits.values()), hits


def test_closed_form_draws_nothing():
    items = items_of_different_size(30)
    assert estimate(items, mean, seed=1, ratio=True) == estimate(items, mean, seed=2, ratio=True)


def test_one_item_or_infinite_score_has_no_interval():
    for items in ([(1.0, 1.0)], [(3.0, 2.0)], [(math.inf, 1.0), (1.0, 1.0)], [(math.nan, 1.0), (1.0, 1.0)]):
        result = estimate(items, mean, seed=0, ratio=True)
        assert math.isnan(result.stderr)
        assert math.isnan(result.low)
    empty = estimate([(0.0, 0.0)] * 3, lambda total: total[0] / total[1] if total[1] else math.nan, seed=0, ratio=True)
    assert math.isnan(empty.value)
    assert math.isnan(empty.low)


def test_item_without_weight_counts_in_n_only():
    result = estimate([(2.0, 1.0), (4.0, 1.0), (0.0, 0.0)], mean, seed=0, ratio=True)
    assert (result.value, result.n, result.method) == (3.0, 3, "delta")
