"""Standard errors, 95 % intervals and paired tests of scores.

The functions take one vector of statistics per item and an aggregate of their sum, or of all of them (see
`harness.Metric`). Fractions of items have intervals of proportions (`proportions`). Every other score has the interval
of the jackknife with Student's t: the score is computed again without each item, or without each group of items. A
score that is not a function of sums has the bootstrap's standard error instead. Nothing else is drawn at random.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from harness.errors import HarnessError
from harness.statistics.item_statistics import (
    Aggregate,
    Groups,
    ItemsAggregate,
    Statistics,
    magnitude,
    score_of,
    scores_without_each,
    statistics_matrix,
    sum_by_group,
    without_rounding,
)
from harness.statistics.proportions import mcnemar_p, paired_difference_interval, wilson
from harness.types import ROUNDING

IntervalTest = Literal["McNemar", "paired t"]

MIN_CHANGED = 20
"""Minimum number of changed items for Student's t, if most items are unchanged."""


@dataclass(frozen=True)
class Estimate:
    """A score, or the difference of two scores, with its uncertainty.

    The interval always contains the value. A value and its bounds are sums of the same items in different orders, so a
    bound can pass the value in the last digit. Such a bound is moved to the value.

    Attributes:
        value: The score or the difference.
        stderr: Its standard error.
        low: Lower bound of the 95 % interval.
        high: Upper bound of the 95 % interval.
        n: Number of items.
        method: How the interval was computed: `wilson` (a fraction), `paired` (a difference of two fractions), `t` (a
            mean), `jackknife` (another function of sums), `bootstrap` (any other score) or `combined` (a mean over
            suites).
        groups: Number of groups of items that belong together; None if all items are independent.
    """

    value: float
    stderr: float
    low: float
    high: float
    n: int
    method: str = "t"
    groups: int | None = None

    def __post_init__(self) -> None:
        if self.low > self.value:
            object.__setattr__(self, "low", self.value)
        if self.high < self.value:
            object.__setattr__(self, "high", self.value)

    @property
    def units(self) -> int:
        """Number of independent units: the groups, else the items."""
        return self.n if self.groups is None else self.groups

    @property
    def excludes_zero(self) -> bool:
        """Whether the interval excludes 0; false if it is NaN."""
        return self.low > 0.0 or self.high < 0.0

    def scaled(self, factor: float) -> Estimate:
        """Return the estimate of `factor` times the value."""
        low, high = sorted((factor * self.low, factor * self.high)) if factor else (0.0, 0.0)
        return replace(self, value=factor * self.value, stderr=abs(factor) * self.stderr, low=low, high=high)


@dataclass(frozen=True)
class PairedTest:
    """A difference over the same items, and the test that belongs to its interval.

    Attributes:
        difference: Second − first, with its interval.
        p: Two-sided p-value for "no difference". The interval excludes 0 exactly if p is below 0.05. NaN without an
            interval.
        test: The test.
    """

    difference: Estimate
    p: float
    test: IntervalTest


def estimate(statistics: Statistics, aggregate: Aggregate, *, ratio: bool = False, groups: Groups = None) -> Estimate:
    """Compute the score of the items and its uncertainty.

    - A ratio whose first statistic is 0 or 1 and whose second is 1 for every item is a fraction p. Its standard error
      is sqrt(p (1 - p) / n), its interval `proportions.wilson`.
    - Any other score has the interval of the jackknife (Quenouille, 1956; Miller, 1974, doi:10.1093/biomet/61.1.1) with
      Student's t. For a mean this is Student's interval. For a smooth function of sums, such as a ratio, a perplexity,
      BLEU or chrF, it agrees with the delta method for many items. The degrees of freedom are the effective number of
      items - 1: (sum of sizes)² / (sum of squared sizes), after Kish (1965, Survey Sampling). The size of an item is
      the second of two statistics, such as its tokens, else 1.

    - A score that is not a function of sums (`ItemsAggregate`) has the standard error of the bootstrap over items or
      groups (Efron, 1979, doi:10.1214/aos/1176344552), with Student's t in the same way. The size of an item is 1.

    With `groups`, the jackknife leaves out one group at a time, and the sizes are those of the groups. This is the
    cluster-robust variance CR3 (Bell & McCaffrey, 2002, Survey Methodology 28; MacKinnon, Nielsen & Webb, 2023,
    doi:10.1002/jae.2969) with the effective number of groups (Carter, Schnepel & Steigerwald, 2017,
    doi:10.1162/REST_a_00639).

    `stderr`, `low` and `high` are NaN for a single item or group, and for a score that is not finite with or without
    one of them.

    Args:
        statistics: One vector per item, all of the same length.
        aggregate: Computes the score from the sum of the vectors.
        ratio: Whether the score is the sum of the first statistic over that of the second, times a constant
            (`Metric.is_ratio`).
        groups: The group of each item. Items of one group may depend on each other.

    Raises:
        HarnessError: There is no item.
    """
    matrix = statistics_matrix(statistics)
    value = score_of(aggregate, matrix)
    units = sum_by_group(matrix, groups)
    if len(units) == len(matrix) and len(matrix) > 1 and ratio and _is_fraction(matrix):
        items, factor = len(matrix), score_of(aggregate, np.ones((1, 2)))
        hits = int(matrix[:, 0].sum())
        stderr = math.sqrt(hits / items * (1 - hits / items) / items)
        bounds = Estimate(hits / items, stderr, *wilson(hits, items), items, "wilson").scaled(factor)
        return replace(bounds, value=value, groups=None if groups is None else items)
    is_mean = ratio and len(units) == len(matrix) and _is_mean(matrix)
    method = "t" if is_mean else _resampling_method(aggregate)
    freedom = _degrees_of_freedom(_sizes(matrix, groups, aggregate))
    result = _jackknife_estimate(value, scores_without_each(matrix, aggregate, groups), freedom)
    return replace(result, n=len(matrix), method=method, groups=None if groups is None else len(units))


def paired_test(
    before: Statistics, after: Statistics, aggregate: Aggregate, *, ratio: bool = False, groups: Groups = None
) -> PairedTest:
    """Compute the score after minus the score before over the same items, its interval and its test.

    - Fractions (see `estimate`): `proportions.paired_difference_interval` and McNemar's exact test.
    - Any other score: the jackknife of the difference with Student's t, over items or groups, as in `estimate`. Both
      scores leave out the same item. The test is the t-test that belongs to the interval: for a mean, the paired
      t-test.
    - A mean, or a fraction over groups, of which fewer than 20 items or groups changed and most did not: Student's t
      is wrong there, as it is for fractions. The interval is the union with that of the fractions that improved and
      worsened, times the range of the items' values. p is the larger of the two.

    Args:
        before: Statistics of the items, as in `estimate`.
        after: Statistics of the same items in the same order.
        aggregate: Computes the score from the sum of the vectors.
        ratio: As in `estimate`.
        groups: As in `estimate`.

    Raises:
        HarnessError: The two have different numbers of items, or none.
    """
    first, second = statistics_matrix(before, "items before"), statistics_matrix(after, "items after")
    if first.shape != second.shape:
        what = f"before has shape {first.shape} (items, statistics), after has {second.shape}"
        raise HarnessError("difference of scores", what, "compare the same items by the same metric")
    scores = score_of(aggregate, first), score_of(aggregate, second)
    value, scale = scores[1] - scores[0], magnitude(scores)
    first_units, second_units = sum_by_group(first, groups), sum_by_group(second, groups)
    is_mean = ratio and _is_mean(first) and _is_mean(second)
    ungrouped = len(first_units) == len(first)
    group_count = None if groups is None else len(first_units)
    if is_mean and ungrouped and len(first) > 1 and _is_fraction(first) and _is_fraction(second):
        paired = _paired_fractions(first[:, 0], second[:, 0])
        result = replace(paired.difference.scaled(score_of(aggregate, np.ones((1, 2)))), groups=group_count)
        return replace(paired, difference=replace(result, value=without_rounding(value, scale)))
    changes = scores_without_each(second, aggregate, groups) - scores_without_each(first, aggregate, groups)
    freedom = _degrees_of_freedom(_sizes(first, groups, aggregate) + _sizes(second, groups, aggregate))
    result = _jackknife_estimate(value, changes, freedom, scale)
    method = "t" if is_mean and ungrouped else _resampling_method(aggregate)
    result = replace(result, n=len(first), method=method, groups=group_count)
    p = _student_p(result, freedom, scale)
    if is_mean and math.isfinite(result.low):
        sizes = _sizes(first, groups, aggregate)
        widest = float(sizes.max() / sizes.mean())  # 1 without groups
        values = np.concatenate([first[:, 0], second[:, 0]])
        item_range = score_of(aggregate, np.ones((1, 2))) * float(np.ptp(values))
        rare = _few_changes(first_units[:, 0], second_units[:, 0], magnitude(values))
        if rare is not None:
            bounds = rare.difference.scaled(abs(item_range) * widest)
            result = replace(
                result,
                stderr=max(result.stderr, bounds.stderr),
                low=min(result.low, bounds.low),
                high=max(result.high, bounds.high),
            )
            p = max(p, rare.p)
    return PairedTest(result, p, "paired t")


def mean_over_suites(estimates: Sequence[Estimate]) -> Estimate:
    """Return the mean of estimates over different items, e.g. of one change for each of several suites.

    The interval is computed from theirs (MOVER: Zou & Donner, 2008, doi:10.1002/sim.3095): its half widths are those of
    the suites, squared, added, and divided by the number of suites. The mean of one estimate is that estimate.

    Args:
        estimates: At least one.
    """
    if len(estimates) == 1:
        return estimates[0]
    count, value = len(estimates), math.fsum(each.value for each in estimates) / len(estimates)
    below = math.hypot(*(each.value - each.low for each in estimates)) / count
    above = math.hypot(*(each.high - each.value for each in estimates)) / count
    scale = max(abs(each.value) for each in estimates)
    grouped = any(each.groups is not None for each in estimates)
    return Estimate(
        value=without_rounding(value, scale),
        stderr=math.hypot(*(each.stderr for each in estimates)) / count,
        low=without_rounding(value - below, scale),
        high=without_rounding(value + above, scale),
        n=sum(each.n for each in estimates),
        method="combined",
        groups=sum(each.units for each in estimates) if grouped else None,
    )


def _is_mean(matrix: np.ndarray) -> bool:
    return matrix.shape[1] == 2 and bool((matrix[:, 1] == 1.0).all())


def _is_fraction(matrix: np.ndarray) -> bool:
    return _is_mean(matrix) and bool(np.isin(matrix[:, 0], (0.0, 1.0)).all())


def _paired_fractions(first: np.ndarray, second: np.ndarray, slack: float = 0.0) -> PairedTest:
    """Compare how many items increased and how many decreased by more than `slack`."""
    improved, worsened = int(np.sum(second - first > slack)), int(np.sum(first - second > slack))
    stderr, low, high = paired_difference_interval(improved, worsened, len(first))
    result = Estimate((improved - worsened) / len(first), stderr, low, high, len(first), "paired")
    return PairedTest(result, mcnemar_p(improved, worsened), "McNemar")


def _few_changes(first: np.ndarray, second: np.ndarray, scale: float) -> PairedTest | None:
    """Return the comparison of `_paired_fractions` if most units are unchanged and few changed; else None."""
    slack = ROUNDING * scale
    changed = int(np.sum(np.abs(second - first) > slack))
    return _paired_fractions(first, second, slack) if changed < min(MIN_CHANGED, len(first) / 2) else None


def _resampling_method(aggregate: Aggregate) -> str:
    return "bootstrap" if isinstance(aggregate, ItemsAggregate) else "jackknife"


def _sizes(matrix: np.ndarray, groups: Groups, aggregate: Aggregate) -> np.ndarray:
    """Return the size of each unit, (units,): the sum of the second of two statistics, else the number of items."""
    has_sizes = matrix.shape[1] == 2 and not isinstance(aggregate, ItemsAggregate)
    return sum_by_group(np.abs(matrix[:, 1]) if has_sizes else np.ones(len(matrix)), groups)


def _degrees_of_freedom(sizes: np.ndarray) -> float:
    """Return the effective number of units - 1, at least 1."""
    squares = float(sizes @ sizes)
    return max(1.0, float(sizes.sum()) ** 2 / squares - 1) if squares > 0 else 1.0


def _jackknife_estimate(value: float, without_each: np.ndarray, freedom: float, scale: float = 0.0) -> Estimate:
    """Return the estimate from the values without each unit; `scale` as in `without_rounding`."""
    units, value = len(without_each), without_rounding(value, scale)
    if units < 2 or not math.isfinite(value) or not np.isfinite(without_each).all():
        return Estimate(value, math.nan, math.nan, math.nan, units)
    from scipy.special import stdtrit

    deviations = without_each - without_each.mean()
    with np.errstate(over="ignore"):  # of perplexities above 1e150, whose interval is then unknown
        stderr = math.sqrt((units - 1) / units * float(deviations @ deviations))
    if not math.isfinite(stderr):
        return Estimate(value, math.nan, math.nan, math.nan, units)
    half = float(stdtrit(freedom, 0.975)) * stderr
    low, high = (without_rounding(bound, scale) for bound in (value - half, value + half))
    return Estimate(value, stderr, low, high, units)


def _student_p(result: Estimate, freedom: float, scale: float) -> float:
    if math.isnan(result.stderr):
        return math.nan
    if result.value == 0.0:
        return 1.0
    if result.stderr <= ROUNDING * scale:
        return 0.0
    from scipy.special import stdtr

    return float(2 * stdtr(freedom, -abs(result.value) / result.stderr))
