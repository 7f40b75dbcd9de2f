"""Intervals of proportions against published numbers, and their agreement with McNemar's test."""

from __future__ import annotations

import math

import pytest
from scipy.stats import binomtest

from harness.statistics.intervals import estimate, paired_test
from harness.statistics.proportions import mcnemar_p, paired_difference_interval, wilson


def mean(total):
    return total[0] / total[1]


def items(*counts):
    """Return the statistics of items before and after: counts of 0 → 1, 1 → 0, 1 → 1, 0 → 0."""
    changes = [(0.0, 1.0), (1.0, 0.0), (1.0, 1.0), (0.0, 0.0)]
    pairs = [change for change, count in zip(changes, counts, strict=True) for _ in range(count)]
    return [[(pair[side], 1.0) for pair in pairs] for side in (0, 1)]


def test_wilson_interval_has_known_bounds():
    assert wilson(60, 100) == pytest.approx((0.5020, 0.6906), abs=5e-5)
    assert wilson(0, 10) == pytest.approx((0.0, 0.2775), abs=5e-5)
    assert wilson(10, 10) == pytest.approx((0.7225, 1.0), abs=5e-5)


def test_fraction_has_wilson_interval_and_binomial_error():
    result = estimate([(1.0, 1.0)] * 60 + [(0.0, 1.0)] * 40, mean, ratio=True)
    assert result.method == "wilson"
    assert (result.low, result.high) == pytest.approx(wilson(60, 100))
    assert result.stderr == pytest.approx(math.sqrt(0.6 * 0.4 / 100))
    every = estimate([(1.0, 1.0)] * 20, mean, ratio=True)
    assert (every.value, every.high) == (1.0, 1.0)
    assert every.low < 0.85


def test_thirty_unchanged_items_have_an_interval_with_a_width():
    result = paired_test(*items(0, 0, 20, 10), mean, ratio=True)
    assert (result.difference.value, result.p, result.difference.method) == (0.0, 1.0, "paired")
    assert (result.difference.low, result.difference.high) == pytest.approx((-0.0866, 0.0866), abs=5e-5)


def test_five_gained_of_thirty_are_no_evidence():
    result = paired_test(*items(5, 0, 15, 10), mean, ratio=True)
    assert (result.test, result.p) == ("McNemar", 0.0625)
    assert result.difference.low < 0 < result.difference.high
    assert paired_test(*items(6, 0, 14, 10), mean, ratio=True).difference.low > 0


@pytest.mark.parametrize("improved", range(0, 40, 3))
@pytest.mark.parametrize("worsened", [0, 1, 5, 20])
def test_interval_is_the_union_of_two_published_ones(improved, worsened):
    n = 100
    stderr, low, high = paired_difference_interval(improved, worsened, n)
    gained, lost = (improved + 1) / (n + 2), (worsened + 1) / (n + 2)
    half = 1.959964 * math.sqrt((gained + lost - (gained - lost) ** 2) / (n + 2))
    bounds = [(gained - lost - half, gained - lost + half)]
    if improved + worsened:
        exact = binomtest(improved, improved + worsened).proportion_ci(0.95, "exact")
        bounds.append(tuple((improved + worsened) / n * (2 * bound - 1) for bound in exact))
    assert (low, high) == pytest.approx((min(each[0] for each in bounds), max(each[1] for each in bounds)), abs=1e-6)
    assert 1.959964 * stderr == pytest.approx(half)


def test_interval_excludes_zero_exactly_where_mcnemar_is_significant():
    counts = [(improved, changed - improved) for changed in range(121) for improved in range(changed + 1)]
    counts += [(improved, 1000 - improved) for improved in range(440, 561)]
    for improved, worsened in counts:
        changed = improved + worsened
        for n in {max(changed, 1), changed + 30, 10 * changed + 30, 10**6}:
            _, low, high = paired_difference_interval(improved, worsened, n)
            significant = mcnemar_p(improved, worsened) < 0.05
            assert (low > 0 or high < 0) == significant, (improved, worsened, n)


def test_mcnemar_handles_no_change_and_thousands_of_changes():
    assert mcnemar_p(0, 0) == 1.0
    assert mcnemar_p(4000, 0) == 0.0
    assert mcnemar_p(2000, 2000) == 1.0


def test_mcnemar_equals_the_binomial_test():
    for improved, worsened in ((5, 14), (14, 5), (0, 6), (3, 3), (400, 470)):
        expected = binomtest(improved, improved + worsened).pvalue
        assert mcnemar_p(improved, worsened) == pytest.approx(expected)
