"""Statistics of items as an array, and sums over the items that belong together."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence

import numpy as np

from harness.errors import HarnessError
from harness.types import ROUNDING, Item

Aggregate = Callable[[Sequence[float]], float]
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
    index_of: dict[Hashable, int] = {}
    indices = [index_of.setdefault(group, len(index_of)) for group in groups]
    sums = np.zeros((len(index_of), *matrix.shape[1:]))
    np.add.at(sums, indices, matrix)
    return sums


def score_of(aggregate: Aggregate, total: np.ndarray) -> float:
    """Return the score of summed statistics."""
    return float(aggregate(total.tolist()))


def scores_without_each(matrix: np.ndarray, aggregate: Aggregate) -> np.ndarray:
    """Return the score of all rows but one, for each row: (rows,); NaN for a single row."""
    if len(matrix) < 2:
        return np.full(len(matrix), np.nan)
    with np.errstate(invalid="ignore"):  # a row that is not finite gives no interval
        remaining = matrix.sum(axis=0) - matrix
    return np.array([score_of(aggregate, row) for row in remaining])


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
