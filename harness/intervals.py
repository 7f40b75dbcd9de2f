"""Standard errors and 95 % intervals of scores, by resampling the items that they come from.

Knows vectors of statistics and an aggregate of their sum (see `contracts.Metric`), neither metrics nor models.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from harness.errors import HarnessError

Aggregate = Callable[[Sequence[float]], float]
Statistics = Sequence[Sequence[float]]

_DRAWS = 1 << 21  # items drawn at a time, which bounds the memory to some tens of MB


@dataclass(frozen=True)
class Estimate:
    """A score, or the difference of two, with its uncertainty. low, high: bounds of the 95 % interval."""

    value: float
    stderr: float
    low: float
    high: float
    n: int


def estimate(statistics: Statistics, aggregate: Aggregate, *, seed: int, resamples: int = 2000) -> Estimate:
    """The score of the items and its uncertainty, by the percentile bootstrap (Efron & Tibshirani, 1993, chapter 13).

    statistics: one vector an item, equally long. aggregate: sum of vectors -> score.
    The items are drawn with replacement, `resamples` times. The standard error is the standard deviation of the
    replicates, the interval their 2.5 and 97.5 percentiles. The same seed draws the same items whatever the score.

    One item tells nothing of the spread: `stderr`, `low` and `high` are then NaN. They are NaN too where the score
    itself is not finite. Replicates that are NaN (a score undefined on the items drawn) are left out; where that is
    more than one in twenty, the interval is NaN.

    Raises HarnessError when there is no item.
    """
    matrix = _matrix(statistics, "items")
    value = _value(aggregate, matrix.sum(axis=0))
    sums = _resampled_sums([matrix], seed, resamples)[0] if len(matrix) > 1 else matrix[:0]
    return _summary(value, np.array([_value(aggregate, row) for row in sums]), len(matrix))


def difference(
    before: Statistics, after: Statistics, aggregate: Aggregate, *, seed: int, resamples: int = 2000
) -> Estimate:
    """The score after less the score before, paired over the items (Koehn, 2004, aclanthology W04-3250).

    before, after: statistics of the same items in the same order. Each replicate draws the same items for both.
    For the rest as `estimate`. Raises HarnessError when the two have not the same number of items, or none.
    """
    first, second = _matrix(before, "items before"), _matrix(after, "items after")
    if first.shape != second.shape:
        what = (
            f"{len(first)} items before and {len(second)} after, of {first.shape[1]} and {second.shape[1]} statistics"
        )
        raise HarnessError("difference of scores", what, "compare the same items by the same metric")
    value = _value(aggregate, second.sum(axis=0)) - _value(aggregate, first.sum(axis=0))
    replicates = []
    if len(first) > 1:
        sums = _resampled_sums([first, second], seed, resamples)
        replicates = [_value(aggregate, new) - _value(aggregate, old) for old, new in zip(*sums, strict=True)]
    return _summary(value, np.array(replicates), len(first))


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


def _summary(value: float, replicates: np.ndarray, items: int) -> Estimate:
    defined = replicates[~np.isnan(replicates)]
    if items < 2 or not math.isfinite(value) or len(defined) < 0.95 * len(replicates):
        return Estimate(value, math.nan, math.nan, math.nan, items)
    with np.errstate(invalid="ignore"):  # an infinite replicate makes the standard error NaN, the bounds stay
        stderr = float(np.std(defined, ddof=1))
        low, high = (float(bound) for bound in np.quantile(defined, (0.025, 0.975), method="nearest"))
    return Estimate(value, stderr, low, high, items)
