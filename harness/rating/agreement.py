"""Agreement of raters: the raw share of equal ratings, and Krippendorff's alpha by the package `krippendorff`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Literal

INSTALL_HINT = "pip install 'harness-sft[rating]'"

Ratings = Mapping[str, Mapping[str, float]]
"""Rater -> item -> rating."""


@dataclass(frozen=True)
class Agreement:
    """How much raters agree.

    Attributes:
        pairs: Number of pairs of ratings of one item by two raters.
        equal: Share of the pairs that are equal; NaN without pairs.
        close: Share of the pairs that differ by at most 1; NaN without pairs.
        alpha: Krippendorff's alpha: 1 is perfect, 0 is chance; NaN if it is not known.
        note: Why alpha is not known; empty if it is.
    """

    pairs: int
    equal: float
    close: float
    alpha: float
    note: str = ""


def measure_agreement(ratings: Ratings, level: Literal["ordinal", "interval"] = "ordinal") -> Agreement:
    """Return the agreement of two or more raters, each of whom may have left out items.

    Args:
        ratings: Rater -> item -> rating.
        level: Whether the distances between ratings are known (`interval`), or their order only.
    """
    items = list(dict.fromkeys(item for of_rater in ratings.values() for item in of_rater))
    pairs = [
        (one[item], other[item])
        for one, other in combinations(ratings.values(), 2)
        for item in items
        if item in one and item in other
    ]
    if not pairs:
        return Agreement(0, math.nan, math.nan, math.nan, "no item has two ratings")
    equal = sum(one == other for one, other in pairs) / len(pairs)
    close = sum(abs(one - other) <= 1 for one, other in pairs) / len(pairs)
    alpha, note = _krippendorff_alpha(
        [[of_rater.get(item, math.nan) for item in items] for of_rater in ratings.values()], level
    )
    return Agreement(len(pairs), equal, close, alpha, note)


def _krippendorff_alpha(table: Sequence[Sequence[float]], level: Literal["ordinal", "interval"]) -> tuple[float, str]:
    """Return alpha of a table (raters, items), NaN where a rating is missing, and why it is not known.

    Krippendorff (2011), Computing Krippendorff's Alpha-Reliability. Where nothing varies it is 0 / 0.
    """
    counted = [column for column in zip(*table, strict=True) if sum(not math.isnan(value) for value in column) > 1]
    if len({value for column in counted for value in column if not math.isnan(value)}) < 2:
        return math.nan, "undefined: nothing varies"
    try:
        import krippendorff
    except ImportError:
        return math.nan, f"not computed: {INSTALL_HINT}"
    return float(krippendorff.alpha(reliability_data=table, level_of_measurement=level)), ""
