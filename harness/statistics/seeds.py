"""Estimates over items and seeds: the score of several runs that differ in their seed only.

An estimate over n items is written as its value and the contribution of each item to its error (`Linearized`). Sums and
differences of such estimates stay paired by item, within one run and between runs.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations

import numpy as np

from harness.statistics.intervals import Estimate
from harness.statistics.item_statistics import Aggregate, Statistics, score_of, scores_without_each

_PSEUDO_ITEM = "pseudo-item"


@dataclass(frozen=True)
class Linearized:
    """A number and how each item contributes to its sampling error.

    Attributes:
        value: The number.
        errors: Item -> its contribution to the error of `value`; the contributions sum to about 0. The variance of
            `value` over the items is about n / (n - 1) times the sum of their squares.
        n: Number of items.
        is_binary: Whether every item counts 0 or 1.
    """

    value: float
    errors: Mapping[Hashable, float] = field(repr=False)
    n: int
    is_binary: bool = False


@dataclass(frozen=True)
class SeedSpread:
    """How one number differs between seeds.

    Attributes:
        values: The value of each seed.
        sd: Their standard deviation.
        over_seeds: Their mean, with Student's t interval over the seeds.
        over_items: Their mean, with the interval over the items, for these seeds.
    """

    values: tuple[float, ...]
    sd: float
    over_seeds: Estimate
    over_items: Estimate


@dataclass(frozen=True)
class PooledEstimate:
    """The mean of one number over seeds.

    Attributes:
        estimate: The mean, with the interval over items and seeds.
        p: p-value of "the number is 0"; NaN without an interval.
        spread: The seeds one by one; None for a single seed.
    """

    estimate: Estimate
    p: float
    spread: SeedSpread | None


def linearize(statistics: Statistics, aggregate: Aggregate, items: Sequence[Hashable]) -> Linearized:
    """Compute the score of the items, and the contribution of each to its error, by the jackknife.

    The contribution of an item is (n - 1) / n times the change of the score without it (Efron & Tibshirani, 1993,
    chapter 11). For a mean it is exactly the item's deviation from the mean, divided by n.

    Args:
        statistics: One vector of statistics for each item.
        aggregate: Computes the score from the vectors, see `scores_without_each`.
        items: The identity of each item, in the same order. Items of one group have the group's identity: they are
            left out together, and the group counts as one item.
    """
    matrix = np.asarray(statistics, dtype=np.float64)
    value, units = score_of(aggregate, matrix), list(dict.fromkeys(items))
    n = len(units)
    if n < 2:
        return Linearized(value, dict.fromkeys(units, math.nan), n)
    groups = None if n == len(matrix) else items
    errors = (n - 1) / n * (value - scores_without_each(matrix, aggregate, groups))
    errors -= errors.mean()
    is_binary = matrix.shape[1] == 2 and bool((matrix[:, 1] == 1.0).all() and np.isin(matrix[:, 0], (0.0, 1.0)).all())
    return Linearized(value, dict(zip(units, errors.tolist(), strict=True)), n, is_binary)


def combine(terms: Sequence[tuple[float, Linearized]]) -> Linearized:
    """Return the weighted sum of numbers, paired by item.

    A difference of two proportions over the same items gets two pseudo-items, one that rose and one that fell, as in
    the interval of Bonett & Price (2012, doi:10.3102/1076998611411915): its width is then never 0.

    Args:
        terms: (weight, number).
    """
    errors = weighted_sum(terms)
    n = _count_items(errors)
    if sorted(weight for weight, _ in terms) == [-1.0, 1.0] and all(term.is_binary for _, term in terms):
        errors |= {(_PSEUDO_ITEM, sign): sign / (n + 2) for sign in (1, -1)}
    return Linearized(math.fsum(weight * term.value for weight, term in terms), errors, n)


def weighted_sum(terms: Sequence[tuple[float, Linearized]]) -> dict[Hashable, float]:
    """Return item -> the weighted sum of its contributions. terms: (weight, number)."""
    errors: dict[Hashable, float] = {}
    for weight, term in terms:
        for item, error in term.errors.items():
            errors[item] = errors.get(item, 0.0) + weight * error
    return errors


def of_suite(number: Linearized, suite: str) -> Linearized:
    """Return a number whose items differ from those of other suites, also if they have the same content."""
    errors: dict[Hashable, float] = {}
    for item, error in number.errors.items():
        is_pseudo = isinstance(item, tuple) and item[0] == _PSEUDO_ITEM
        errors[(_PSEUDO_ITEM, suite, item) if is_pseudo else (suite, item)] = error
    return Linearized(number.value, errors, number.n, number.is_binary)


def pool_over_seeds(runs: Sequence[Linearized], *, comparisons: int = 1) -> PooledEstimate:
    """Return the mean over seeds, with an interval that accounts for both items and seeds.

    Seeds and items are two crossed random factors, as readers and cases are in diagnostic studies. The variance of the
    mean over S seeds is v / S + c (Obuchowski & Rockette, 1995, doi:10.1080/03610919508813243). v is the variance of
    the values over the seeds. c is the mean covariance of two seeds, which they have because they share items; it is 0
    if each seed has its own items. v is not taken below what the items alone cause, and c not below 0.

    Each part is multiplied by the squared quantile of Student's t with its own degrees of freedom, S - 1 and n - 1, and
    the root of their sum is half the interval (modified large samples: Graybill & Wang, 1980,
    doi:10.1080/01621459.1980.10477565). Simulated coverage for 2 to 5 seeds and 30 to 500 items: 94.5 to 99.5 %.

    Args:
        runs: The number in each run, one run for each seed, at least one.
        comparisons: Number of comparisons for which the intervals hold together (Bonferroni).
    """
    runs = [_with_pseudo_items(run) for run in runs]
    count = len(runs)
    values = tuple(run.value for run in runs)
    value = math.fsum(values) / count
    items = list(dict.fromkeys(item for run in runs for item in run.errors))
    n = _count_items(items)
    level = 1 - 0.025 / comparisons
    variance = float(np.var(values, ddof=1)) if count > 1 else 0.0
    over_seeds = _Variances(variance / count, 0.0, 0.0, count - 1, 1).interval(value, n, level, "t")
    if n < 2 or not all(math.isfinite(error) for run in runs for error in (run.value, *run.errors.values())):
        unknown = Estimate(value, math.nan, math.nan, math.nan, n, "t")
        spread = SeedSpread(values, math.sqrt(variance), over_seeds, unknown) if count > 1 else None
        return PooledEstimate(unknown, math.nan, spread)
    index = {item: position for position, item in enumerate(items)}
    errors = np.zeros((count, len(items)))
    for row, run in zip(errors, runs, strict=True):
        row[[index[item] for item in run.errors]] = list(run.errors.values())
    correction = n / (n - 1)
    item_variance = correction * float((errors.mean(axis=0) ** 2).sum())
    if count == 1:
        parts = _Variances(0.0, 0.0, item_variance, 0, n - 1)
        return PooledEstimate(parts.interval(value, n, level, "t"), parts.p_value(value), None)
    covariances = [float(errors[first] @ errors[second]) for first, second in combinations(range(count), 2)]
    covariance = max(0.0, correction * math.fsum(covariances) / len(covariances))
    within = correction * float((errors**2).sum()) / count
    parts = _Variances(variance / count, max(0.0, within - covariance) / count, covariance, count - 1, n - 1)
    over_items = _Variances(0.0, 0.0, item_variance, 0, n - 1).interval(value, n, level, "t")
    spread = SeedSpread(values, math.sqrt(variance), over_seeds, over_items)
    return PooledEstimate(parts.interval(value, n, level, "seeds"), parts.p_value(value), spread)


def widen(estimate: Estimate, comparisons: int) -> Estimate:
    """Return the estimate with an interval that holds for several comparisons together (Bonferroni).

    Each side is multiplied by the ratio of the quantiles of Student's t, with n - 1 degrees of freedom, at 1 - 0.025 /
    comparisons and at 0.975.

    Args:
        estimate: An estimate with a 95 % interval.
        comparisons: Number of comparisons, at least 1.
    """
    if comparisons <= 1 or estimate.n < 2:
        return estimate
    from scipy.special import stdtrit

    wide, usual = (float(stdtrit(estimate.n - 1, level)) for level in (1 - 0.025 / comparisons, 0.975))
    factor, value = wide / usual, estimate.value
    low, high = value - factor * (value - estimate.low), value + factor * (estimate.high - value)
    return Estimate(value, estimate.stderr, low, high, estimate.n, estimate.method)


def _with_pseudo_items(run: Linearized) -> Linearized:
    """Add two items that are 1 and two that are 0 to a proportion (Agresti & Coull, 1998): its width is never 0."""
    if not run.is_binary:
        return run
    share = 1 / (run.n + 4)
    pseudo: dict[Hashable, float] = {
        (_PSEUDO_ITEM, number): share * ((1 - run.value) if number < 2 else -run.value) for number in range(4)
    }
    return Linearized(run.value, {**run.errors, **pseudo}, run.n)


def _count_items(items: Iterable[Hashable]) -> int:
    return sum(not (isinstance(item, tuple) and item[0] == _PSEUDO_ITEM) for item in items)


@dataclass(frozen=True)
class _Variances:
    """The parts of the variance of a mean over seeds.

    Attributes:
        seeds: From the spread of the seeds.
        seeds_floor: What the items alone cause in it.
        shared_items: From the items that all seeds share.
        seed_freedom: Degrees of freedom of the first part; 0 without seeds.
        item_freedom: Of the other parts.
    """

    seeds: float
    seeds_floor: float
    shared_items: float
    seed_freedom: int
    item_freedom: int

    def interval(self, value: float, n: int, level: float, method: str) -> Estimate:
        """Return the value with its interval; level: the quantile of its upper end."""
        half = self._half_width(level)
        stderr = math.sqrt(max(self.seeds, self.seeds_floor) + self.shared_items)
        return Estimate(value, stderr, value - half, value + half, n, method)

    def p_value(self, value: float) -> float:
        """Return the two-sided p-value of 0: the level at which an interval ends there, by bisection."""
        if value == 0:
            return 1.0
        low, high = 0.0, 1.0
        for _ in range(50):
            middle = (low + high) / 2
            if self._half_width(1 - middle / 2) < abs(value):
                high = middle
            else:
                low = middle
        return high

    def _half_width(self, level: float) -> float:
        from scipy.special import stdtrit

        item_quantile = float(stdtrit(self.item_freedom, level))
        # Without degrees of freedom there is no part of the seeds.
        seed_quantile = float(stdtrit(self.seed_freedom, level)) if self.seed_freedom else 0.0
        seed_part = max(seed_quantile**2 * self.seeds, item_quantile**2 * self.seeds_floor)
        return math.sqrt(seed_part + item_quantile**2 * self.shared_items)
