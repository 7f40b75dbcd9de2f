"""Closed forms of standard errors and intervals against the bootstrap, textbooks and simulation."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest

from harness.statistics.intervals import difference, estimate, wilson


def mean(total):
    return total[0] / total[1]


def values(n, seed=0, scale=2.0):
    draw = random.Random(seed)
    return [(draw.gauss(1.0, scale), 1.0) for _ in range(n)]


def sized(n, seed=0):
    """Sums over items of very different sizes, as nats over tokens are."""
    draw = random.Random(seed)
    sizes = [float(draw.randint(1, 60)) for _ in range(n)]
    return [(size * draw.uniform(0.5, 3.0), size) for size in sizes]


def test_wilsons_interval_has_the_known_bounds():
    assert wilson(60, 100) == pytest.approx((0.5020, 0.6906), abs=5e-5)
    assert wilson(0, 10) == pytest.approx((0.0, 0.2775), abs=5e-5)
    assert wilson(10, 10) == pytest.approx((0.7225, 1.0), abs=5e-5)


def test_a_share_has_wilsons_interval_and_the_binomial_error():
    result = estimate([(1.0, 1.0)] * 60 + [(0.0, 1.0)] * 40, mean, seed=0, ratio=True)
    assert result.method == "wilson"
    assert (result.low, result.high) == pytest.approx(wilson(60, 100))
    assert result.stderr == math.sqrt(0.6 * 0.4 / 100)


def test_a_share_of_one_is_not_certain():
    result = estimate([(1.0, 1.0)] * 20, mean, seed=0, ratio=True)
    assert (result.value, result.stderr, result.high) == (1.0, 0.0, 1.0)
    assert result.low < 0.85
    assert estimate([(1.0, 1.0)] * 20, mean, seed=0).low == 1.0  # what resampling would say


def test_a_mean_has_students_interval():
    result = estimate([(value, 1.0) for value in (1.0, 2.0, 4.0)], mean, seed=0, ratio=True)
    error = np.std([1, 2, 4], ddof=1) / math.sqrt(3)
    assert result.method == "t"
    assert result.stderr == pytest.approx(error)
    assert result.high - result.value == pytest.approx(4.302652729911275 * error)  # t table, 2 degrees, 97.5 %


@pytest.mark.parametrize(("items", "method"), [(values(300), "t"), (sized(300), "delta")])
def test_closed_forms_agree_with_the_bootstrap(items, method):
    closed, drawn = (estimate(items, mean, seed=1, resamples=8000, ratio=ratio) for ratio in (True, False))
    assert (closed.method, drawn.method) == (method, "bootstrap")
    assert closed.value == drawn.value
    assert closed.stderr == pytest.approx(drawn.stderr, rel=0.05)
    assert (closed.low, closed.high) == pytest.approx((drawn.low, drawn.high), abs=0.25 * closed.stderr)


def test_paired_differences_agree_with_the_bootstrap():
    for before in (values(300), sized(300)):
        draw = random.Random(9)
        after = [(total + size * draw.gauss(0.2, 0.3), size) for total, size in before]
        closed, drawn = (
            difference(before, after, mean, seed=1, resamples=8000, ratio=ratio) for ratio in (True, False)
        )
        assert closed.value == pytest.approx(drawn.value)
        assert closed.stderr == pytest.approx(drawn.stderr, rel=0.05)
        assert closed.stderr < estimate(before, mean, seed=0, ratio=True).stderr
        assert (closed.low, closed.high) == pytest.approx((drawn.low, drawn.high), abs=0.25 * closed.stderr)


def test_a_constant_factor_goes_through():
    plain = estimate(sized(50), mean, seed=0, ratio=True)
    scaled = estimate(sized(50), lambda total: 100 * total[0] / total[1], seed=0, ratio=True)
    assert scaled.stderr == pytest.approx(100 * plain.stderr)
    assert (scaled.low, scaled.high) == pytest.approx((100 * plain.low, 100 * plain.high))
    share = estimate([(1.0, 1.0), (0.0, 1.0)] * 5, lambda total: 100 * total[0] / total[1], seed=0, ratio=True)
    assert (share.low, share.high) == pytest.approx(tuple(100 * bound for bound in wilson(5, 10)))


@pytest.mark.parametrize("n", [8, 40])
def test_intervals_hold_the_truth_nineteen_times_in_twenty(n):
    draw = random.Random(3)
    hits = {"t": 0, "wilson": 0}
    for _ in range(600):
        mean_of = estimate([(draw.gauss(0, 1), 1.0) for _ in range(n)], mean, seed=0, ratio=True)
        share_of = estimate([(float(draw.random() < 0.7), 1.0) for _ in range(n)], mean, seed=0, ratio=True)
        hits["t"] += mean_of.low <= 0 <= mean_of.high
        hits["wilson"] += share_of.low <= 0.7 <= share_of.high
    assert all(0.92 < count / 600 < 0.985 for count in hits.values()), hits


def test_nothing_is_drawn_where_there_is_a_closed_form():
    items = sized(30)
    assert estimate(items, mean, seed=1, ratio=True) == estimate(items, mean, seed=2, ratio=True)


def test_one_item_and_what_is_not_finite_have_no_interval():
    for items in ([(1.0, 1.0)], [(3.0, 2.0)], [(math.inf, 1.0), (1.0, 1.0)], [(math.nan, 1.0), (1.0, 1.0)]):
        result = estimate(items, mean, seed=0, ratio=True)
        assert math.isnan(result.stderr)
        assert math.isnan(result.low)
    empty = estimate([(0.0, 0.0)] * 3, lambda total: total[0] / total[1] if total[1] else math.nan, seed=0, ratio=True)
    assert math.isnan(empty.value)
    assert math.isnan(empty.low)


def test_an_item_without_weight_counts_in_n_and_not_in_the_score():
    result = estimate([(2.0, 1.0), (4.0, 1.0), (0.0, 0.0)], mean, seed=0, ratio=True)
    assert (result.value, result.n, result.method) == (3.0, 3, "delta")
