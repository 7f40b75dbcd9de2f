"""Standard errors and 95 % intervals of scores: in closed form if there is one, else by resampling the items.

The functions take one vector of statistics per item and an aggregate of their sum (see `harness.Metric`).
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

_DRAWS_PER_BLOCK = 1 << 21  # bounds the memory to some tens of MB


@dataclass(frozen=True)
class Estimate:
    """A score, or the difference of two scores, with its uncertainty.

    The interval always contains the value. A value and its bounds are sums of the same items in different orders, so a
    bound can pass the value in the last digit. The interval of a skewed bootstrap can even exclude the value. Such a
    bound is moved to the value.

    Attributes:
        value: The score or the difference.
        stderr: Its standard error.
        low: Lower bound of the 95 % interval.
        high: Upper bound of the 95 % interval.
        n: Number of items.
        method: How the interval was computed: `wilson` (a proportion), `t` (a mean), `delta` (a ratio of sums) or
            `bootstrap`.
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
    """Return the difference of two numbers, or exactly 0 if rounding alone can explain it.

    Sums of the same numbers in different orders differ by less than `ROUNDING` of their size on every machine. The
    sign of a difference or its bound therefore never depends on the last digit.

    Args:
        value: The difference.
        scale: The magnitude of the two numbers.
    """
    return 0.0 if abs(value) <= ROUNDING * scale else value


def estimate(
    statistics: Statistics, aggregate: Aggregate, *, seed: int, resamples: int = 2000, ratio: bool = False
) -> Estimate:
    """Compute the score of the items and its uncertainty.

    With `ratio` the uncertainty has a closed form and nothing is drawn:

    - If every second statistic is 1, the score is a mean: Student's t interval with n - 1 degrees of freedom.
    - If every first statistic is also 0 or 1, it is a proportion p. The standard error is sqrt(p (1 - p) / n). The
      interval is Wilson's score interval (Wilson, 1927, doi:10.1080/01621459.1927.10502953), which keeps its level
      near 0 and 1.
    - Otherwise it is a ratio of sums: the standard error of its linearization by the delta method (Cochran, 1977,
      Sampling Techniques, chapter 6), with Student's t.

    Any other score is resampled by the percentile bootstrap (Efron & Tibshirani, 1993, chapter 13): `resamples` draws
    of the items with replacement. The standard error is the standard deviation of the replicates. The interval is
    their 2.5 and 97.5 percentiles.

    `stderr`, `low` and `high` are NaN for a single item and for a score that is not finite. Replicates that are NaN
    (the score is undefined on the drawn items) are ignored; if they are more than 5 %, the interval is NaN.

    Args:
        statistics: One vector per item, all of the same length.
        aggregate: Computes the score from the sum of the vectors.
        seed: Seed of the bootstrap. The same seed draws the same items for every score.
        resamples: Number of bootstrap draws.
        ratio: Whether the score is the sum of the first statistic over that of the second, times a constant
            (`Metric.is_ratio`).

    Raises:
        HarnessError: There is no item.
    """
    matrix = _statistics_matrix(statistics, "items")
    value = _score(aggregate, matrix.sum(axis=0))
    if ratio:
        return _ratio_estimate(matrix, value, _score(aggregate, np.ones(matrix.shape[1])))
    sums = _resampled_sums([matrix], seed, resamples)[0] if len(matrix) > 1 else matrix[:0]
    return _bootstrap_estimate(value, np.array([_score(aggregate, row) for row in sums]), len(matrix))


def difference(
    before: Statistics,
    after: Statistics,
    aggregate: Aggregate,
    *,
    seed: int,
    resamples: int = 2000,
    ratio: bool = False,
) -> Estimate:
    """Compute the score after minus the score before, paired over the items (Koehn, 2004, aclanthology W04-3250).

    Args:
        before: Statistics of the items, as in `estimate`.
        after: Statistics of the same items in the same order. Each bootstrap replicate draws the same items for both.
        aggregate: Computes the score from the sum of the vectors.
        seed: Seed of the bootstrap.
        resamples: Number of bootstrap draws.
        ratio: As in `estimate`. The interval is then Student's t over the differences per item. For a ratio of sums
            these are differences of linearizations (delta method).

    Raises:
        HarnessError: The two have different numbers of items, or none.
    """
    first, second = _statistics_matrix(before, "items before"), _statistics_matrix(after, "items after")
    if first.shape != second.shape:
        what = f"before has shape {first.shape} (items, statistics), after has {second.shape}"
        raise HarnessError("difference of scores", what, "compare the same items by the same metric")
    scores = _score(aggregate, first.sum(axis=0)), _score(aggregate, second.sum(axis=0))
    value, scale = scores[1] - scores[0], magnitude(scores)
    if ratio:
        factor = _score(aggregate, np.ones(first.shape[1]))
        method = "t" if _is_mean(first) and _is_mean(second) else "delta"
        return _student_estimate(value, factor * (_influence(second) - _influence(first)), method, scale)
    differences = []
    if len(first) > 1:
        sums = _resampled_sums([first, second], seed, resamples)
        differences = [_score(aggregate, new) - _score(aggregate, old) for old, new in zip(*sums, strict=True)]
    return _bootstrap_estimate(value, np.array(differences), len(first), scale)


def magnitude(values: Sequence[float] | np.ndarray) -> float:
    """Return the largest absolute value of the finite numbers, 0 if there is none: the scale of their differences."""
    absolute = np.abs(np.asarray(values, dtype=np.float64))
    return float(np.max(absolute, initial=0.0, where=np.isfinite(absolute)))


def replicates(
    stages: Sequence[Statistics], aggregate: Aggregate, *, seed: int, resamples: int = 2000
) -> tuple[np.ndarray, np.ndarray]:
    """Compute the scores of several stages over the same items, and their bootstrap replicates.

    Every replicate draws the same items for all stages, so any number computed from one row of them is paired.

    Args:
        stages: For each stage one vector of statistics per item.
        aggregate: Computes the score from the sum of the vectors.
        seed: Seed of the bootstrap.
        resamples: Number of bootstrap draws.

    Returns:
        The scores, (stages,), and the replicates, (resamples, stages); (0, stages) for a single item.

    Raises:
        HarnessError: The stages have different items, or none.
    """
    matrices = [_statistics_matrix(statistics, "items") for statistics in stages]
    if len({matrix.shape for matrix in matrices}) > 1:
        raise HarnessError("scores", "the stages have different items", "compare the same items by the same metric")
    values = np.array([_score(aggregate, matrix.sum(axis=0)) for matrix in matrices])
    if len(matrices[0]) < 2:
        return values, np.empty((0, len(matrices)))
    sums = _resampled_sums(matrices, seed, resamples)
    return values, np.array([[_score(aggregate, row) for row in rows] for rows in sums]).T


def estimate_from_replicates(value: float, replicates: np.ndarray, items: int, scale: float = 0.0) -> Estimate:
    """Build an estimate from a number and its bootstrap replicates; see `estimate` for the NaN rules.

    Args:
        value: The number.
        replicates: Its replicates, (resamples,). Without any, the interval is NaN.
        items: Number of items behind the number.
        scale: For a difference, the magnitude of the two numbers; see `without_rounding`.
    """
    if not len(replicates):
        return Estimate(without_rounding(value, scale), math.nan, math.nan, math.nan, items)
    return _bootstrap_estimate(value, replicates, items, scale)


def _statistics_matrix(statistics: Statistics, description: str) -> np.ndarray:
    """Return the statistics as one array, (items, statistics)."""
    if not len(statistics):
        raise HarnessError("scores", f"there are no {description}", "give the suite at least one row")
    if len({len(vector) for vector in statistics}) > 1:
        what = f"the {description} have vectors of different lengths"
        raise HarnessError("scores", what, "return vectors of one length from Metric.statistics")
    return np.asarray(statistics, dtype=np.float64)


def _score(aggregate: Aggregate, total: np.ndarray) -> float:
    return float(aggregate(total.tolist()))


def _resampled_sums(matrices: list[np.ndarray], seed: int, resamples: int) -> list[np.ndarray]:
    """Return for each matrix the sums over the same drawn items, (resamples, statistics)."""
    items = len(matrices[0])
    generator = np.random.Generator(np.random.PCG64(seed))
    sums: list[list[np.ndarray]] = [[] for _ in matrices]
    step = max(1, _DRAWS_PER_BLOCK // items)
    for start in range(0, resamples, step):
        rows = min(step, resamples - start)
        drawn = generator.integers(0, items, size=(rows, items))
        drawn += np.arange(rows)[:, None] * items
        counts = np.bincount(drawn.ravel(), minlength=rows * items).reshape(rows, items).astype(np.float64)
        for blocks, matrix in zip(sums, matrices, strict=True):
            blocks.append(counts @ matrix)
    return [np.concatenate(blocks) for blocks in sums]


def _ratio_estimate(matrix: np.ndarray, value: float, factor: float) -> Estimate:
    """Compute the closed form of a ratio of sums.

    Args:
        matrix: Statistics, (items, 2).
        value: The score.
        factor: The constant by which the ratio of the sums is multiplied.
    """
    if not _is_mean(matrix):
        return _student_estimate(value, factor * _influence(matrix), "delta")
    first = matrix[:, 0]
    if not np.isin(first, (0.0, 1.0)).all():
        return _student_estimate(value, factor * _influence(matrix), "t")
    items = len(first)
    proportion = float(first.mean())
    if items < 2:
        return Estimate(value, math.nan, math.nan, math.nan, items, "wilson")
    low, high = wilson(int(first.sum()), items)
    stderr = abs(factor) * math.sqrt(proportion * (1 - proportion) / items)
    return Estimate(value, stderr, factor * low, factor * high, items, "wilson")


def wilson(hits: int, n: int, z: float = 1.959963984540054) -> tuple[float, float]:
    """Return Wilson's score interval of the proportion hits / n.

    Args:
        hits: Number of items that are 1.
        n: Number of items, above 0.
        z: Normal quantile of the confidence level (default: 95 %).
    """
    proportion, spread = hits / n, z * z / n
    middle = (proportion + spread / 2) / (1 + spread)
    half = z / (1 + spread) * math.sqrt(proportion * (1 - proportion) / n + spread / (4 * n))
    # Rounding would leave these bounds next to 0 and 1.
    return (0.0 if hits == 0 else middle - half), (1.0 if hits == n else middle + half)


def _is_mean(matrix: np.ndarray) -> bool:
    return bool((matrix[:, 1] == 1.0).all())


def _influence(matrix: np.ndarray) -> np.ndarray:
    """Return the first-order contribution of each item to a ratio of sums: (items,), with mean 0."""
    first, second = matrix[:, 0], matrix[:, 1]
    total = second.sum()
    if not total:
        return np.full(len(first), math.nan)
    with np.errstate(invalid="ignore"):  # an item that is not finite gives no interval
        return np.asarray((first - first.sum() / total * second) / (total / len(second)))


def _student_estimate(value: float, influence: np.ndarray, method: str, scale: float = 0.0) -> Estimate:
    items = len(influence)
    value = without_rounding(value, scale)
    if items < 2 or not math.isfinite(value) or not np.isfinite(influence).all():
        return Estimate(value, math.nan, math.nan, math.nan, items, method)
    from scipy.special import stdtrit

    stderr = float(np.std(influence, ddof=1)) / math.sqrt(items)
    half = float(stdtrit(items - 1, 0.975)) * stderr
    low, high = (without_rounding(bound, scale) for bound in (value - half, value + half))
    return Estimate(value, stderr, low, high, items, method)


def _bootstrap_estimate(value: float, replicates: np.ndarray, items: int, scale: float = 0.0) -> Estimate:
    value = without_rounding(value, scale)
    defined = replicates[~np.isnan(replicates)]
    if items < 2 or not math.isfinite(value) or len(defined) < 0.95 * len(replicates):
        return Estimate(value, math.nan, math.nan, math.nan, items)
    with np.errstate(invalid="ignore", over="ignore"):  # an infinite replicate leaves the bounds finite
        stderr = float(np.std(defined, ddof=1))
        bounds = np.quantile(defined, (0.025, 0.975), method="nearest")
        low, high = (without_rounding(float(bound), scale) for bound in bounds)
    return Estimate(value, stderr, low, high, items)
