"""Standard errors and 95 % intervals of scores: in closed form where there is one, else by resampling the items.

Knows vectors of statistics and an aggregate of their sum (see `contracts.Metric`), neither metrics nor models.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from harness.errors import HarnessError
from harness.types import ROUNDING

Aggregate = Callable[[Sequence[float]], float]
Statistics = Sequence[Sequence[float]]

_DRAWS = 1 << 21  # items drawn at a time, which bounds the memory to some tens of MB


@dataclass(frozen=True)
class Estimate:
    """A score, or the difference of two, with its uncertainty. low, high: bounds of the 95 % interval.

    method: how it was found: `wilson` (a share), `t` (a mean), `delta` (a ratio of sums) or `bootstrap`.

    The interval always holds the value. A value and its bounds are sums of the same items in different orders, so a
    bound can be beyond the value by a last digit; a skewed bootstrap can leave it out altogether. Such a bound is moved
    to the value.
    """

    value: float
    stderr: float
    low: float
    high: float
    n: int
    method: str = "bootstrap"

    def __post_init__(self) -> None:
        if self.low > self.value:
            object.__setattr__(self, "low", self.value)
        if self.high < self.value:
            object.__setattr__(self, "high", self.value)


def without_rounding(value: float, scale: float) -> float:
    """A difference of numbers as large as `scale`, or exactly 0 where rounding alone can have made it.

    Sums of the same numbers in different orders differ by less than `ROUNDING` of their size on every machine, so
    whether a difference or its bound is above 0 never hangs on the last digit.
    """
    return 0.0 if abs(value) <= ROUNDING * scale else value


def estimate(
    statistics: Statistics, aggregate: Aggregate, *, seed: int, resamples: int = 2000, ratio: bool = False
) -> Estimate:
    """The score of the items and its uncertainty.

    statistics: one vector an item, equally long. aggregate: sum of vectors -> score.

    ratio: the score is the sum of the first statistic over that of the second, times a constant
    (`Metric.is_ratio`). Its uncertainty then has a closed form, and nothing is drawn:
    - where every second statistic is 1 the score is a mean: Student's t interval with n - 1 degrees of freedom;
    - where moreover every first one is 0 or 1 it is a share p: the standard error is sqrt(p (1 - p) / n), the interval
      Wilson's score interval (Wilson, 1927, doi:10.1080/01621459.1927.10502953), which holds its level near 0 and 1;
    - else it is a ratio of sums: the standard error of its linearisation, the delta method (Cochran, 1977, Sampling
      Techniques, chapter 6), with Student's t.

    Any other score is resampled, by the percentile bootstrap (Efron & Tibshirani, 1993, chapter 13).
    The items are drawn with replacement, `resamples` times. The standard error is the standard deviation of the
    replicates, the interval their 2.5 and 97.5 percentiles. The same seed draws the same items whatever the score.

    One item tells nothing of the spread: `stderr`, `low` and `high` are then NaN. They are NaN too where the score
    itself is not finite. Replicates that are NaN (a score undefined on the items drawn) are left out; where that is
    more than one in twenty, the interval is NaN.

    Raises HarnessError when there is no item.
    """
    matrix = _matrix(statistics, "items")
    value = _value(aggregate, matrix.sum(axis=0))
    if ratio:
        return _ratio(matrix, value, _value(aggregate, np.ones(matrix.shape[1])))
    sums = _resampled_sums([matrix], seed, resamples)[0] if len(matrix) > 1 else matrix[:0]
    return _summary(value, np.array([_value(aggregate, row) for row in sums]), len(matrix))


def difference(
    before: Statistics,
    after: Statistics,
    aggregate: Aggregate,
    *,
    seed: int,
    resamples: int = 2000,
    ratio: bool = False,
) -> Estimate:
    """The score after less the score before, paired over the items (Koehn, 2004, aclanthology W04-3250).

    before, after: statistics of the same items in the same order. Each replicate draws the same items for both.
    ratio: Student's t over the items' own differences; for a ratio of sums, of their linearisations (delta method).
    For the rest as `estimate`. Raises HarnessError when the two have not the same number of items, or none.
    """
    first, second = _matrix(before, "items before"), _matrix(after, "items after")
    if first.shape != second.shape:
        what = (
            f"{len(first)} items before and {len(second)} after, of {first.shape[1]} and {second.shape[1]} statistics"
        )
        raise HarnessError("difference of scores", what, "compare the same items by the same metric")
    ends = _value(aggregate, first.sum(axis=0)), _value(aggregate, second.sum(axis=0))
    value, scale = ends[1] - ends[0], magnitude(ends)
    if ratio:
        factor = _value(aggregate, np.ones(first.shape[1]))
        method = "t" if _is_mean(first) and _is_mean(second) else "delta"
        return _student(value, factor * (_influence(second) - _influence(first)), method, scale)
    replicates = []
    if len(first) > 1:
        sums = _resampled_sums([first, second], seed, resamples)
        replicates = [_value(aggregate, new) - _value(aggregate, old) for old, new in zip(*sums, strict=True)]
    return _summary(value, np.array(replicates), len(first), scale)


def magnitude(values: Sequence[float] | np.ndarray) -> float:
    """The largest finite number without its sign, 0 where there is none: what differences of these are measured by."""
    known = np.abs(np.asarray(values, dtype=np.float64))
    return float(np.max(known, initial=0.0, where=np.isfinite(known)))


def replicates(
    stages: Sequence[Statistics], aggregate: Aggregate, *, seed: int, resamples: int = 2000
) -> tuple[np.ndarray, np.ndarray]:
    """A score of several stages over the same items: its values, (stages,), and their replicates, (resamples, stages).

    Every replicate draws the same items for all stages, so that whatever is computed from a row of them is paired.
    One item gives no replicate: (0, stages). Raises HarnessError as `difference` does.
    """
    matrices = [_matrix(statistics, "items") for statistics in stages]
    if len({matrix.shape for matrix in matrices}) > 1:
        raise HarnessError("scores", "the stages have not the same items", "compare the same items by the same metric")
    values = np.array([_value(aggregate, matrix.sum(axis=0)) for matrix in matrices])
    if len(matrices[0]) < 2:
        return values, np.empty((0, len(matrices)))
    sums = _resampled_sums(matrices, seed, resamples)
    return values, np.array([[_value(aggregate, row) for row in rows] for rows in sums]).T


def estimate_from_replicates(value: float, replicates: np.ndarray, items: int, scale: float = 0.0) -> Estimate:
    """A number and the replicates of it, (resamples,), as an estimate; see `estimate` for what is left out or NaN.

    scale: for a difference, how large the numbers are that it was taken of; see `without_rounding`.
    Without a replicate nothing is known of its spread: the interval is NaN.
    """
    if not len(replicates):
        return Estimate(without_rounding(value, scale), math.nan, math.nan, math.nan, items)
    return _summary(value, replicates, items, scale)


def _matrix(statistics: Statistics, what: str) -> np.ndarray:
    """The statistics as one array, (items, statistics)."""
    if not len(statistics):
        raise HarnessError("scores", f"there are no {what}", "give the suite at least one row")
    if len({len(vector) for vector in statistics}) > 1:
        raise HarnessError("scores", f"the {what} have vectors of different lengths", "the metric must mend this")
    return np.asarray(statistics, dtype=np.float64)


def _value(aggregate: Aggregate, total: np.ndarray) -> float:
    return float(aggregate(total.tolist()))


def _resampled_sums(matrices: list[np.ndarray], seed: int, resamples: int) -> list[np.ndarray]:
    """For each matrix, the sums over the same drawn items: (resamples, statistics)."""
    items = len(matrices[0])
    generator = np.random.Generator(np.random.PCG64(seed))
    sums: list[list[np.ndarray]] = [[] for _ in matrices]
    step = max(1, _DRAWS // items)
    for start in range(0, resamples, step):
        rows = min(step, resamples - start)
        drawn = generator.integers(0, items, size=(rows, items))
        drawn += np.arange(rows)[:, None] * items
        counts = np.bincount(drawn.ravel(), minlength=rows * items).reshape(rows, items).astype(np.float64)
        for kept, matrix in zip(sums, matrices, strict=True):
            kept.append(counts @ matrix)
    return [np.concatenate(kept) for kept in sums]


def _ratio(matrix: np.ndarray, value: float, factor: float) -> Estimate:
    """matrix: (items, 2). factor: what the ratio of the sums is multiplied by to give the value."""
    if not _is_mean(matrix):
        return _student(value, factor * _influence(matrix), "delta")
    first = matrix[:, 0]
    if not np.isin(first, (0.0, 1.0)).all():
        return _student(value, factor * _influence(matrix), "t")
    items = len(first)
    share = float(first.mean())
    if items < 2:
        return Estimate(value, math.nan, math.nan, math.nan, items, "wilson")
    low, high = wilson(int(first.sum()), items)
    return Estimate(
        value, abs(factor) * math.sqrt(share * (1 - share) / items), factor * low, factor * high, items, "wilson"
    )


def wilson(hits: int, n: int, z: float = 1.959963984540054) -> tuple[float, float]:
    """Wilson's score interval of the share hits / n, n > 0, at the level of the normal quantile z (default: 95 %)."""
    share, spread = hits / n, z * z / n
    middle = (share + spread / 2) / (1 + spread)
    half = z / (1 + spread) * math.sqrt(share * (1 - share) / n + spread / (4 * n))
    # Exactly 0 and 1 at the ends, where rounding would leave a bound beside them.
    return (0.0 if hits == 0 else middle - half), (1.0 if hits == n else middle + half)


def _is_mean(matrix: np.ndarray) -> bool:
    return bool((matrix[:, 1] == 1.0).all())


def _influence(matrix: np.ndarray) -> np.ndarray:
    """What each item adds to a ratio of sums, to first order: (items,), of mean 0."""
    first, second = matrix[:, 0], matrix[:, 1]
    total = second.sum()
    if not total:
        return np.full(len(first), math.nan)
    with np.errstate(invalid="ignore"):  # an item that is not finite leaves no interval
        return np.asarray((first - first.sum() / total * second) / (total / len(second)))


def _student(value: float, influence: np.ndarray, method: str, scale: float = 0.0) -> Estimate:
    items = len(influence)
    value = without_rounding(value, scale)
    if items < 2 or not math.isfinite(value) or not np.isfinite(influence).all():
        return Estimate(value, math.nan, math.nan, math.nan, items, method)
    from scipy.special import stdtrit

    stderr = float(np.std(influence, ddof=1)) / math.sqrt(items)
    half = float(stdtrit(items - 1, 0.975)) * stderr
    low, high = (without_rounding(bound, scale) for bound in (value - half, value + half))
    return Estimate(value, stderr, low, high, items, method)


def _summary(value: float, replicates: np.ndarray, items: int, scale: float = 0.0) -> Estimate:
    value = without_rounding(value, scale)
    defined = replicates[~np.isnan(replicates)]
    if items < 2 or not math.isfinite(value) or len(defined) < 0.95 * len(replicates):
        return Estimate(value, math.nan, math.nan, math.nan, items)
    with np.errstate(invalid="ignore", over="ignore"):  # a replicate beyond all bounds: the bounds stay
        stderr = float(np.std(defined, ddof=1))
        bounds = np.quantile(defined, (0.025, 0.975), method="nearest")
        low, high = (without_rounding(float(bound), scale) for bound in bounds)
    return Estimate(value, stderr, low, high, items)
