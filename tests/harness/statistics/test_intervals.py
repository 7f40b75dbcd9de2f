"""Bootstrap standard errors and intervals, compared with closed forms."""

from __future__ import annotations

import math
import random
import time

import numpy as np
import pytest

from harness.errors import HarnessError
from harness.statistics.intervals import difference, estimate


def mean(total):
    return total[0] / total[1]


def normal_items(n, shift=0.0, seed=0):
    generator = random.Random(seed)
    return [(generator.gauss(shift, 2.0), 1.0) for _ in range(n)]


def test_mean_has_closed_form_standard_error():
    items = normal_items(200)
    values = np.array(items)[:, 0]
    closed = values.std(ddof=1) / math.sqrt(200)
    result = estimate(items, mean, seed=1, resamples=8000)
    assert result.value == pytest.approx(values.mean())
    assert result.n == 200
    assert result.stderr == pytest.approx(closed, rel=0.05)
    assert result.low == pytest.approx(values.mean() - 1.96 * closed, abs=0.2 * closed)
    assert result.high == pytest.approx(values.mean() + 1.96 * closed, abs=0.2 * closed)


def test_proportion_has_binomial_standard_error():
    items = [(1.0, 1.0)] * 60 + [(0.0, 1.0)] * 40
    result = estimate(items, mean, seed=0)
    assert result.stderr == pytest.approx(math.sqrt(0.6 * 0.4 / 100), rel=0.06)
    assert (result.low, result.high) == pytest.approx((0.502, 0.691), abs=0.025)  # Wilson's interval


def test_ratio_weights_items_by_size():
    items = [(10.0, 10.0), (0.0, 1.0), (0.0, 1.0)]
    assert estimate(items, mean, seed=0).value == pytest.approx(10 / 12)


def test_pairing_removes_item_difficulty_from_the_error():
    before = normal_items(100)
    generator = random.Random(5)
    after = [(value + 0.5 + generator.gauss(0, 0.1), 1.0) for value, _ in before]
    gains = np.array(after)[:, 0] - np.array(before)[:, 0]
    result = difference(before, after, mean, seed=0)
    assert result.value == pytest.approx(gains.mean())
    assert result.stderr == pytest.approx(gains.std(ddof=1) / 10, rel=0.06)
    assert result.stderr < estimate(before, mean, seed=0).stderr / 5
    assert 0 < result.low < result.value < result.high


def test_no_change_gives_exactly_zero():
    items = normal_items(30)
    result = difference(items, items, mean, seed=0)
    assert (result.value, result.stderr, result.low, result.high) == (0.0, 0.0, 0.0, 0.0)


def test_result_depends_on_seed_only():
    items = normal_items(50)
    state = np.random.get_state()[1].tolist()
    assert estimate(items, mean, seed=7) == estimate(items, mean, seed=7)
    assert estimate(items, mean, seed=7) != estimate(items, mean, seed=8)
    assert np.random.get_state()[1].tolist() == state


def test_block_size_does_not_change_the_result(monkeypatch):
    items = normal_items(40)
    one_block = estimate(items, mean, seed=3)
    monkeypatch.setattr("harness.statistics.intervals._DRAWS_PER_BLOCK", 40 * 7)
    assert estimate(items, mean, seed=3) == pytest.approx(one_block)


def test_one_item_has_no_interval():
    result = estimate([(3.0, 1.0)], mean, seed=0)
    assert result.value == 3.0
    assert all(math.isnan(value) for value in (result.stderr, result.low, result.high))
    assert math.isnan(difference([(3.0, 1.0)], [(4.0, 1.0)], mean, seed=0).stderr)


def test_scores_that_are_not_finite_have_no_interval():
    def undefined(total):
        return math.nan

    def infinite(total):
        return math.inf

    for aggregate in (undefined, infinite):
        assert math.isnan(estimate(normal_items(10), aggregate, seed=0).low)


def test_rare_undefined_replicates_are_ignored_and_frequent_ones_remove_the_interval():
    def ratio(total):
        return total[0] / total[1] if total[1] else math.nan

    rare = estimate([(1.0, 1.0), (2.0, 1.0), (3.0, 1.0), (4.0, 1.0), (0.0, 0.0)], ratio, seed=0)
    assert math.isfinite(rare.stderr)
    frequent = estimate([(1.0, 1.0), (0.0, 0.0), (0.0, 0.0)], ratio, seed=0)
    assert frequent.value == 1.0
    assert math.isnan(frequent.low)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: estimate([], mean, seed=0), "no items"),
        (lambda: estimate([(1.0,), (1.0, 2.0)], mean, seed=0), "different lengths"),
        (lambda: difference([(1.0, 1.0)], [(1.0, 1.0)] * 2, mean, seed=0), "before has shape \\(1, 2\\)"),
    ],
)
def test_invalid_input_is_rejected(call, message):
    with pytest.raises(HarnessError, match=message):
        call()


def test_thousand_items_take_less_than_two_seconds():
    items = normal_items(1000)
    start = time.perf_counter()
    estimate(items, mean, seed=0)
    assert time.perf_counter() - start < 2.0
