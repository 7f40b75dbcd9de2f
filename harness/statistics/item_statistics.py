"""Statistics of items as an array, sums over the items that belong together, and scores without one of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from harness.errors import HarnessError
from harness.interfaces.metric import Metric
from harness.types import ROUNDING, Item

BOOTSTRAP_DRAWS = 2000
"""Number of samples of the items for a score that is not a function of sums."""

MIN_FINITE_SHARE = 0.95
"""Minimum fraction of the samples with a finite score."""


@dataclass(frozen=True)
class ItemsAggregate:
    """A score of the vectors of all items, which their sum does not decide, such as a median.

    Attributes:
        function: Takes the statistics of a set of items, (items, statistics).
    """

    function: Callable[[np.ndarray], float]


Aggregate = Callable[[Sequence[float]], float] | ItemsAggregate
"""Computes a score from the sum of the items' vectors, or from all of them."""

Statistics = Sequence[Sequence[float]]
Groups = Sequence[Hashable] | None
"""The group of each item; None if all items are independent."""


def groups_of(items: Sequence[Item]) -> list[str] | None:
    """Return the group of each item; None if the suite has no groups."""
    groups = [item.group for item in items if item.group is not None]
    return groups if items and len(groups) == len(items) else None


def statistics_matrix(statistics: Statistics, description: str = "items") -> np.ndarray:
    """Return the statistics as one array, (items, statistics).

    Args:
        statistics: One vector per item.
        description: What the items are called in an error.

    Raises:
        HarnessError: There is no item, or the vectors have different lengths.
    """
    if not len(statistics):
        raise HarnessError("scores", f"there are no {description}", "give the suite at least one row")
    if len({len(vector) for vector in statistics}) > 1:
        what = f"the {description} have vectors of different lengths"
        raise HarnessError("scores", what, "return vectors of one length from Metric.statistics")
    return np.asarray(statistics, dtype=np.float64)


def group_indices(groups: Sequence[Hashable]) -> tuple[np.ndarray, int]:
    """Return the index of each item's group, (items,), in the order of the groups' first items, and their number."""
    index_of: dict[Hashable, int] = {}
    return np.array([index_of.setdefault(group, len(index_of)) for group in groups], np.intp), len(index_of)


def sum_by_group(matrix: np.ndarray, groups: Groups) -> np.ndarray:
    """Return the sums of the rows of each group, in the order of the groups' first rows.

    Args:
        matrix: (items,) or (items, statistics).
        groups: The group of each item; None: every item is a group.

    Returns:
        (groups,) or (groups, statistics).
    """
    if groups is None:
        return matrix
    indices, count = group_indices(groups)
    sums = np.zeros((count, *matrix.shape[1:]))
    np.add.at(sums, indices, matrix)
    return sums


def score_function(metric: Metric, name: str) -> Aggregate:
    """Return the function that computes a score of a metric."""
    if metric.sums_statistics:
        return partial(metric.aggregate, name)
    return ItemsAggregate(partial(metric.aggregate_items, name))


def score_of(aggregate: Aggregate, matrix: np.ndarray) -> float:
    """Return the score of items. matrix: their statistics, (items, statistics)."""
    if isinstance(aggregate, ItemsAggregate):
        return float(aggregate.function(matrix))
    return float(aggregate(matrix.sum(axis=0).tolist()))


def scores_without_each(matrix: np.ndarray, aggregate: Aggregate, groups: Groups = None) -> np.ndarray:
    """Return the score without each item, or without each group of items, (units,); NaN for a single unit.

    A score that is not a function of sums need not change smoothly with each item, as a median does. Its jackknife is
    then wrong, and that of its linear approximation by the bootstrap is returned, see `_linearize_by_bootstrap`.

    Args:
        matrix: The statistics of the items, (items, statistics).
        aggregate: Computes the score.
        groups: The group of each item; None: every item is a unit.
    """
    if isinstance(aggregate, ItemsAggregate):
        return _linearize_by_bootstrap(matrix, aggregate, groups)
    units = sum_by_group(matrix, groups)
    if len(units) < 2:
        return np.full(len(units), np.nan)
    with np.errstate(invalid="ignore"):  # a row that is not finite gives no interval
        remaining = units.sum(axis=0) - units
    return np.array([float(aggregate(row)) for row in remaining.tolist()])


def _linearize_by_bootstrap(matrix: np.ndarray, aggregate: ItemsAggregate, groups: Groups) -> np.ndarray:
    """Return the score without each unit by a linear approximation whose jackknife variance is that of the bootstrap.

    The contribution of a unit is the covariance, over samples with replacement, of how often it is drawn and the score
    (the infinitesimal jackknife; Efron, 2014, doi:10.1080/01621459.2013.823775, section 4). The contributions are then
    scaled to the variance of the samples times n / (n - 1), since they contain noise of 2,000 samples. Equal numbers of
    units have the same samples, so that differences over the same items stay paired.

    Args:
        matrix: The statistics of the items, (items, statistics).
        aggregate: Computes the score.
        groups: As in `scores_without_each`.
    """
    unit_rows = _rows_by_group(len(matrix), groups)
    count = len(unit_rows)
    if count < 2:
        return np.full(count, np.nan)
    value, generator = score_of(aggregate, matrix), np.random.default_rng(0)
    changes: list[float] = []
    counts, weighted_counts = np.zeros(count), np.zeros(count)  # how often each unit is drawn
    for _ in range(BOOTSTRAP_DRAWS):
        chosen = generator.integers(count, size=count)
        rows = chosen if groups is None else np.concatenate([unit_rows[unit] for unit in chosen])
        change = score_of(aggregate, matrix[rows]) - value
        if math.isfinite(change):
            times_drawn = np.bincount(chosen, minlength=count)
            counts += times_drawn
            weighted_counts += change * times_drawn
            changes.append(change)
    if len(changes) < MIN_FINITE_SHARE * BOOTSTRAP_DRAWS:
        return np.full(count, np.nan)
    contributions = (weighted_counts - np.mean(changes) * counts) / len(changes)
    contributions -= contributions.mean()
    size = float(np.sqrt(contributions @ contributions))
    if size > 0.0:  # else no sample changes the score
        contributions *= float(np.std(changes)) / size
    without: np.ndarray = value - count / (count - 1) * contributions
    return without


def _rows_by_group(items: int, groups: Groups) -> list[np.ndarray]:
    """Return the indices of the items of each group, in the order of the groups' first items."""
    indices, count = (np.arange(items), items) if groups is None else group_indices(groups)
    by_group = np.argsort(indices, kind="stable")
    return np.split(by_group, np.cumsum(np.bincount(indices, minlength=count))[:-1])


def magnitude(values: Sequence[float] | np.ndarray) -> float:
    """Return the largest absolute value of the finite numbers, 0 if there is none: the scale of their differences."""
    absolute = np.abs(np.asarray(values, dtype=np.float64))
    return float(np.max(absolute, initial=0.0, where=np.isfinite(absolute)))


def without_rounding(value: float, scale: float) -> float:
    """Return the difference of two numbers, or exactly 0 if rounding alone can explain it.

    Sums of the same numbers in different orders differ by less than `ROUNDING` of their size on every machine. The
    sign of a difference or its bound therefore never depends on the last digit.

    Args:
        value: The difference.
        scale: The magnitude of the two numbers.
    """
    return 0.0 if abs(value) <= ROUNDING * scale else value
