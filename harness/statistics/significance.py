"""Two-sided significance tests over paired items, and the correction for several tests."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterator, Sequence

import numpy as np

from harness.statistics.item_statistics import (
    Aggregate,
    Groups,
    ItemsAggregate,
    Statistics,
    group_indices,
    magnitude,
    score_of,
    sum_by_group,
)
from harness.types import ROUNDING

_BOOLEANS_PER_BLOCK = 1 << 22  # one byte each


def approximate_randomization(
    first: Statistics,
    second: Statistics,
    aggregate: Aggregate,
    *,
    seed: int,
    trials: int = 10_000,
    groups: Groups = None,
) -> float:
    """Compute the p-value of "no difference" by randomly swapping the two results of each item.

    This is the paired test for corpus scores, which are not a mean of their items (Noreen, 1989; Riezler & Maxwell,
    2005, aclanthology W05-0908). The p-value is the fraction of trials with a difference at least as large as the
    observed one, with 1 added to both counts. The draws are those of sacrebleu's `PairedTest(test_type="ar")`, so the
    same seed gives the same p. One difference: a trial that equals the observed difference counts here, so equal runs
    give p = 1.

    Args:
        first: Statistics of the items.
        second: Statistics of the same items in the same order.
        aggregate: Computes the score from the sum of the vectors, or from all of them.
        seed: Seed of the random swaps.
        trials: Number of random swaps of all items.
        groups: The group of each item. The items of one group are swapped together.

    Returns:
        p; NaN for fewer than two items or groups, or a score that is not finite.

    Raises:
        ValueError: The two have different shapes.
    """
    before, after = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    if before.shape != after.shape:
        raise ValueError(f"statistics of shapes {before.shape} and {after.shape} do not belong to the same items")
    scores = score_of(aggregate, after), score_of(aggregate, before)
    observed, slack = abs(scores[0] - scores[1]), ROUNDING * magnitude(scores)
    units = sum_by_group(np.arange(len(before)), groups)
    if len(units) < 2 or not math.isfinite(observed):
        return math.nan
    generator = np.random.default_rng(seed)
    if isinstance(aggregate, ItemsAggregate):
        differences = _swapped_differences(before, after, aggregate, groups, generator, trials)
    else:
        differences = _swapped_differences_of_sums(
            sum_by_group(before, groups), sum_by_group(after, groups), aggregate, generator, trials
        )
    extreme, finite = 0, 0
    for difference in differences:
        finite += math.isfinite(difference)
        extreme += difference >= observed - slack
    return (extreme + 1) / (finite + 1) if finite >= 0.95 * trials else math.nan


def _swapped_differences_of_sums(
    before: np.ndarray,
    after: np.ndarray,
    aggregate: Callable[[Sequence[float]], float],
    generator: np.random.Generator,
    trials: int,
) -> Iterator[float]:
    """Yield the difference of the two scores for each random swap of their units, by sums."""
    total_before, total_after, item_differences = before.sum(axis=0), after.sum(axis=0), before - after
    # numpy takes 32 booleans from each random number: blocks of a multiple of 32 trials give the same draws as one.
    block = max(32, _BOOLEANS_PER_BLOCK // len(before) // 32 * 32)
    for start in range(0, trials, block):
        swapped = generator.integers(2, size=(min(block, trials - start), len(before)), dtype=bool)
        moved = swapped @ item_differences  # (trials, statistics): moves from one total to the other
        for total, other in zip((total_after + moved).tolist(), (total_before - moved).tolist(), strict=True):
            yield abs(aggregate(total) - aggregate(other))


def _swapped_differences(
    before: np.ndarray,
    after: np.ndarray,
    aggregate: ItemsAggregate,
    groups: Groups,
    generator: np.random.Generator,
    trials: int,
) -> Iterator[float]:
    """Yield the difference of the two scores for each random swap of their items, item by item."""
    units, count = (np.arange(len(before)), len(before)) if groups is None else group_indices(groups)
    for _ in range(trials):
        swapped = generator.integers(2, size=count, dtype=bool)[units, None]  # (items, 1)
        first, second = np.where(swapped, after, before), np.where(swapped, before, after)
        yield abs(score_of(aggregate, first) - score_of(aggregate, second))


def holm(p_values: Sequence[float], hypotheses: Sequence[Hashable] | None = None) -> list[float]:
    """Adjust p-values for multiple tests (Holm, 1979, jstor.org/stable/4615733); the order is kept.

    The k-th smallest of m is multiplied by m − k + 1 and raised to at least the adjusted value before it. NaN stays
    NaN and does not count towards m.

    Args:
        p_values: The p-values.
        hypotheses: The hypothesis of each p-value. Equal ones are one test and count once, with their smallest p-value:
            a perplexity and its logarithm. None: all are different.
    """
    keys: Sequence[Hashable] = range(len(p_values)) if hypotheses is None else hypotheses
    smallest: dict[Hashable, float] = {}
    for key, p in zip(keys, p_values, strict=True):
        if not math.isnan(p):
            smallest[key] = min(p, smallest.get(key, p))
    adjusted: dict[Hashable, float] = {}
    highest = 0.0
    for rank, key in enumerate(sorted(smallest, key=lambda key: smallest[key])):
        highest = max(highest, min(1.0, (len(smallest) - rank) * smallest[key]))
        adjusted[key] = highest
    return [math.nan if math.isnan(p) else adjusted[key] for key, p in zip(keys, p_values, strict=True)]
