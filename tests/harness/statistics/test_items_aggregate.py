"""Scores that are not functions of sums: their uncertainty is that of the bootstrap over items or groups."""

from __future__ import annotations

import math

import numpy as np
import pytest

from harness.interfaces.metric import Metric
from harness.statistics.intervals import estimate, paired_test
from harness.statistics.item_statistics import ItemsAggregate, score_function
from harness.statistics.seeds import combine, linearize, pool_over_seeds
from harness.statistics.significance import approximate_randomization

MEDIAN = ItemsAggregate(lambda rows: float(np.median(rows[:, 0])))
MEAN = ItemsAggregate(lambda rows: float(rows[:, 0].mean()))


def mean_of_sums(total):
    return total[0] / total[1]


def normal_items(n, shift=0.0, seed=0):
    return np.column_stack([np.random.default_rng(seed).normal(shift, 2.0, n), np.ones(n)])


def test_a_mean_by_all_items_has_nearly_the_interval_of_a_mean_by_sums():
    items = normal_items(80)
    resampled, exact = estimate(items, MEAN), estimate(items, mean_of_sums, ratio=True)
    assert (resampled.method, resampled.n) == ("bootstrap", 80)
    assert resampled.value == pytest.approx(exact.value)
    assert resampled.stderr == pytest.approx(exact.stderr, rel=0.05)
    assert resampled.high - resampled.low == pytest.approx(exact.high - exact.low, rel=0.05)


def test_the_standard_error_of_a_median_is_that_of_its_distribution_and_not_that_of_the_jackknife():
    n = 400
    expected = math.sqrt(math.pi / 2) * 2.0 / math.sqrt(n)
    errors = [estimate(normal_items(n, seed=seed), MEDIAN).stderr for seed in range(3)]
    assert np.mean(errors) == pytest.approx(expected, rel=0.25)


def test_a_paired_difference_has_the_uncertainty_of_the_difference():
    before = normal_items(100)
    after = before + np.column_stack([np.random.default_rng(1).normal(0.3, 0.2, 100), np.zeros(100)])
    resampled, exact = paired_test(before, after, MEAN), paired_test(before, after, mean_of_sums, ratio=True)
    assert resampled.difference.stderr == pytest.approx(exact.difference.stderr, rel=0.1)
    assert resampled.difference.excludes_zero
    assert resampled.p < 0.001
    same = paired_test(before, before, MEDIAN)
    assert (same.difference.value, same.difference.stderr, same.p) == (0.0, 0.0, 1.0)


def test_equal_items_of_one_group_count_once():
    items = normal_items(40)
    doubled, groups = np.repeat(items, 2, axis=0), [index // 2 for index in range(80)]
    alone, grouped = estimate(items, MEDIAN), estimate(doubled, MEDIAN, groups=groups)
    assert (grouped.n, grouped.groups) == (80, 40)
    assert (grouped.low, grouped.high) == pytest.approx((alone.low, alone.high))


def test_randomization_swaps_whole_items_and_groups():
    before, after = normal_items(30), normal_items(30, shift=3.0, seed=1)
    p = approximate_randomization(before, after, MEDIAN, seed=0, trials=500)
    assert p < 0.01
    assert approximate_randomization(before, before, MEDIAN, seed=0, trials=50) == 1.0
    by_sums = approximate_randomization(before, normal_items(30, seed=2), mean_of_sums, seed=0, trials=2000)
    by_items = approximate_randomization(before, normal_items(30, seed=2), MEAN, seed=0, trials=2000)
    assert by_items == pytest.approx(by_sums, abs=0.05)
    groups = [index // 15 for index in range(30)]
    assert approximate_randomization(before, after, MEDIAN, seed=0, trials=500, groups=groups) > 0.3


def test_contributions_of_items_pair_runs_and_seeds():
    ids = list(range(60))
    runs = [(normal_items(60, seed=seed), normal_items(60, shift=1.0, seed=seed)) for seed in (0, 1)]
    differences = [
        combine([(-1.0, linearize(before, MEDIAN, ids)), (1.0, linearize(after, MEDIAN, ids))])
        for before, after in runs
    ]
    pooled = pool_over_seeds(differences).estimate
    assert pooled.value == pytest.approx(1.0)
    assert pooled.high - pooled.low < 1e-6, "each item has the same change"
    level = linearize(runs[0][0], MEDIAN, ids)
    expected = estimate(runs[0][0], MEDIAN)
    assert pool_over_seeds([level]).estimate.stderr == pytest.approx(expected.stderr)


def test_a_score_that_is_undefined_for_most_samples_has_no_interval():
    undefined = ItemsAggregate(
        lambda rows: 1.0 if len({tuple(row) for row in rows.tolist()}) == len(rows) else math.nan
    )
    result = estimate(normal_items(30), undefined)
    assert (result.value, math.isnan(result.low), math.isnan(result.stderr)) == (1.0, True, True)
    assert math.isnan(estimate(normal_items(1), MEDIAN).stderr)


def test_the_function_of_a_metric_is_by_sums_unless_it_overrides_aggregate_items():
    class BySums(Metric):
        def aggregate(self, name, total):
            return total[0] + 10 * total[1]

    class ByItems(Metric):
        def aggregate_items(self, name, statistics):
            return float(statistics.max())

    rows = np.array([[1.0, 2.0], [3.0, 4.0]])
    by_sums, by_items = score_function(BySums(), "s"), score_function(ByItems(), "s")
    assert not isinstance(by_sums, ItemsAggregate)
    assert by_sums((4.0, 6.0)) == BySums().aggregate_items("s", rows) == 64.0
    assert isinstance(by_items, ItemsAggregate)
    assert by_items.function(rows) == 4.0


@pytest.mark.parametrize("aggregate", [MEDIAN, mean_of_sums])
def test_linearized_groups_have_the_standard_error_of_the_estimate(aggregate):
    items = normal_items(60)
    items[:, 1] += np.random.default_rng(2).integers(0, 3, 60)  # of different sizes
    groups = [f"document {index // 3}" for index in range(60)]
    level = linearize(items, aggregate, groups)
    errors = np.array(list(level.errors.values()))
    assert (level.n, list(level.errors)) == (20, list(dict.fromkeys(groups)))
    expected = estimate(items, aggregate, groups=groups).stderr
    assert math.sqrt(20 / 19 * float(errors @ errors)) == pytest.approx(expected)
    assert expected != pytest.approx(estimate(items, aggregate).stderr)
