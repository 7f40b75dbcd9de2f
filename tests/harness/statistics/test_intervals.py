"""Standard errors, intervals and paired tests of scores: closed forms, invalid input, groups."""

from __future__ import annotations

import math
import random
import time

import numpy as np
import pytest
from scipy import stats
from support.paired import difference

from harness.errors import HarnessError
from harness.statistics.intervals import Estimate, estimate, mean_over_suites, paired_test


def mean(total):
    return total[0] / total[1]


def perplexity(total):
    return math.exp(total[0] / total[1])


def normal_items(n, shift=0.0, seed=0):
    generator = random.Random(seed)
    return [(generator.gauss(shift, 2.0), 1.0) for _ in range(n)]


def items_of_different_size(n, seed=0):
    """Return sums over items of very different sizes, such as nats over tokens."""
    generator = random.Random(seed)
    sizes = [float(generator.randint(1, 60)) for _ in range(n)]
    return [(size * generator.uniform(0.5, 3.0), size) for size in sizes]


def delta_method_stderr(items, gradient=1.0):
    first, second = np.array(items).T
    ratio = first.sum() / second.sum()
    return gradient * np.std((first - ratio * second) / second.mean(), ddof=1) / math.sqrt(len(items))


@pytest.mark.parametrize("ratio", [True, False])
def test_mean_has_the_interval_of_the_t_test(ratio):
    items = normal_items(200)
    values = np.array(items)[:, 0]
    low, high = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    result = estimate(items, mean, ratio=ratio)
    assert result.method == ("t" if ratio else "jackknife")
    assert result.stderr == pytest.approx(values.std(ddof=1) / math.sqrt(200))
    assert (result.value, result.low, result.high, result.n) == pytest.approx((values.mean(), low, high, 200))


def test_difference_has_the_interval_and_p_value_of_the_paired_t_test():
    before = normal_items(60)
    generator = random.Random(5)
    after = [(value + 0.5 + generator.gauss(0, 1.5), 1.0) for value, _ in before]
    gains = np.array(after)[:, 0] - np.array(before)[:, 0]
    expected = stats.ttest_1samp(gains, 0)
    result = paired_test(before, after, mean, ratio=True)
    assert (result.test, result.p) == ("paired t", pytest.approx(expected.pvalue))
    assert (result.difference.low, result.difference.high) == pytest.approx(tuple(expected.confidence_interval(0.95)))


def test_ratio_and_perplexity_agree_with_the_delta_method_for_many_items():
    items = items_of_different_size(400)
    assert estimate(items, mean).stderr == pytest.approx(delta_method_stderr(items), rel=0.01)
    value = perplexity(np.array(items).sum(axis=0))
    assert estimate(items, perplexity).stderr == pytest.approx(delta_method_stderr(items, value), rel=0.02)


def test_ratio_weights_items_by_size():
    assert estimate([(10.0, 10.0), (0.0, 1.0), (0.0, 1.0)], mean).value == pytest.approx(10 / 12)


def test_no_change_gives_exactly_zero():
    items = items_of_different_size(30)
    result = paired_test(items, items, mean, ratio=True)
    assert (result.difference.value, result.difference.low, result.difference.high, result.p) == (0.0, 0.0, 0.0, 1.0)


def test_equal_change_of_every_item_is_certain():
    before = normal_items(50)
    result = paired_test(before, [(value + 1.0, 1.0) for value, _ in before], mean, ratio=True)
    assert (result.difference.low, result.p) == (pytest.approx(1.0), 0.0)


def test_one_item_or_group_has_no_interval():
    for result in (
        estimate([(3.0, 1.0)], mean),
        estimate([(1.0, 1.0)], mean, ratio=True),
        difference([(1.0, 1.0)], [(0.0, 1.0)], mean, ratio=True),
        estimate(normal_items(5), mean, groups=["a"] * 5),
    ):
        assert all(math.isnan(value) for value in (result.stderr, result.low, result.high))
    assert math.isnan(paired_test([(3.0, 1.0)], [(4.0, 1.0)], mean).p)


def test_scores_that_are_not_finite_have_no_interval():
    for undefined in (math.nan, math.inf):
        assert math.isnan(estimate(normal_items(10), lambda total, value=undefined: value).low)
    for items in ([(math.inf, 1.0), (1.0, 1.0)], [(math.nan, 1.0), (1.0, 1.0)], [(1.0, 1.0), (0.0, 0.0)]):
        assert math.isnan(estimate(items, lambda total: total[0] / total[1] if total[1] else math.nan, ratio=True).low)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: estimate([], mean), "no items"),
        (lambda: estimate([(1.0,), (1.0, 2.0)], mean), "different lengths"),
        (lambda: difference([(1.0, 1.0)], [(1.0, 1.0)] * 2, mean), "before has shape \\(1, 2\\)"),
    ],
)
def test_invalid_input_is_rejected(call, message):
    with pytest.raises(HarnessError, match=message):
        call()


def test_constant_factor_scales_the_estimate():
    def percent(total):
        return 100 * mean(total)

    for items in (items_of_different_size(50), [(1.0, 1.0), (0.0, 1.0)] * 5, normal_items(20)):
        before = list(reversed(items)) if items[0][1] == 1.0 else [(value / 2, size) for value, size in items]
        for plain, scaled in (
            (estimate(items, mean, ratio=True), estimate(items, percent, ratio=True)),
            (difference(before, items, mean, ratio=True), difference(before, items, percent, ratio=True)),
        ):
            assert scaled.value == pytest.approx(100 * plain.value)
            assert (scaled.stderr, scaled.low, scaled.high) == pytest.approx(
                (100 * plain.stderr, 100 * plain.low, 100 * plain.high)
            )


def test_thousand_items_take_less_than_a_second():
    items = normal_items(1000)
    start = time.perf_counter()
    estimate(items, mean)
    assert time.perf_counter() - start < 1.0


# -- few changes ------------------------------------------------------------------------------------------------------


def test_mean_of_which_few_items_changed_is_judged_as_a_fraction():
    """5 of 60 answers gained some F1, none lost any: p = .0625 by the signs, whatever the t-test says."""
    before = [(0.5, 1.0)] * 60
    after = [(0.9, 1.0), (0.8, 1.0), (0.9, 1.0), (0.85, 1.0), (0.9, 1.0), *before[5:]]
    result = paired_test(before, after, mean, ratio=True)
    assert stats.ttest_1samp([b - a for (a, _), (b, _) in zip(before, after, strict=True)], 0).pvalue < 0.05
    assert result.p == pytest.approx(0.0625)
    assert result.difference.low < 0 < result.difference.high


def test_mean_without_any_change_has_an_interval_with_a_width():
    items = [(index % 3 / 2, 1.0) for index in range(30)]
    result = difference(items, items, mean, ratio=True)
    assert (result.value, result.low, result.high) == pytest.approx((0, -0.0866, 0.0866), abs=5e-5)


# -- groups -----------------------------------------------------------------------------------------------------------


def test_groups_of_equal_size_have_the_t_interval_of_their_means():
    items = normal_items(60)
    groups = [index // 4 for index in range(60)]
    means = np.array(items)[:, 0].reshape(15, 4).mean(axis=1)
    low, high = stats.ttest_1samp(means, 0).confidence_interval(0.95)
    result = estimate(items, mean, ratio=True, groups=groups)
    assert (result.low, result.high) == pytest.approx((low, high))
    assert (result.n, result.groups, result.units) == (60, 15, 15)


def test_groups_of_one_item_change_nothing_but_their_count():
    before, after = normal_items(40), normal_items(40, seed=1)
    hits, misses = [(1.0, 1.0), (0.0, 1.0)] * 20, [(1.0, 1.0)] * 40
    for first, second in ((before, after), (hits, misses)):
        plain = paired_test(first, second, mean, ratio=True)
        grouped = paired_test(first, second, mean, ratio=True, groups=[f"g{index}" for index in range(40)])
        assert (grouped.p, grouped.test) == (plain.p, plain.test)
        assert (grouped.difference.low, grouped.difference.high) == (plain.difference.low, plain.difference.high)
        assert (plain.difference.groups, grouped.difference.groups) == (None, 40)


def test_copies_of_each_item_in_one_group_carry_no_information():
    """Four copies of each question give the interval of the questions, not one of half the width."""
    before, after = items_of_different_size(20), items_of_different_size(20, seed=1)
    after = [(value, size) for (value, _), (_, size) in zip(after, before, strict=True)]
    once = difference(before, after, mean, ratio=True)
    groups = [index for index in range(20) for _ in range(4)]
    copies = [[item for item in items for _ in range(4)] for items in (before, after)]
    grouped, ungrouped = (difference(*copies, mean, ratio=True, groups=each) for each in (groups, None))
    assert (grouped.low, grouped.high) == pytest.approx((once.low, once.high))
    assert ungrouped.high - ungrouped.low < 0.6 * (once.high - once.low)


def test_fraction_over_groups_without_any_change_has_an_interval_with_a_width():
    items = [(float(index % 3 > 0), 1.0) for index in range(120)]
    result = difference(items, items, mean, ratio=True, groups=[index // 4 for index in range(120)])
    assert (result.value, result.groups) == (0.0, 30)
    assert (result.low, result.high) == pytest.approx((-0.0866, 0.0866), abs=5e-5)


# -- means over suites ------------------------------------------------------------------------------------------------


def test_mean_over_one_suite_is_its_estimate():
    result = estimate(normal_items(30), mean)
    assert mean_over_suites([result]) is result


def test_mean_over_suites_adds_squared_half_widths():
    result = mean_over_suites([Estimate(1.0, 0.2, 0.7, 1.4, 30), Estimate(3.0, 0.1, 2.6, 3.3, 40, groups=10)])
    assert (result.value, result.low, result.high) == pytest.approx((2.0, 1.75, 2.25))
    assert (result.n, result.groups, result.method) == (70, 40, "combined")
    assert math.isnan(mean_over_suites([result, Estimate(1.0, math.nan, math.nan, math.nan, 1)]).low)


def test_the_interval_of_a_huge_perplexity_is_unknown():
    result = estimate([(370.0, 1.0), (372.0, 1.0), (371.0, 1.0)], perplexity)  # of about 1e161
    assert result.value == pytest.approx(math.exp(371.0))
    assert math.isnan(result.low)
    assert math.isnan(result.high)
