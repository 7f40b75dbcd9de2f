"""Two-sided significance tests over paired items, and the correction for several tests."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from harness.statistics.intervals import (
    Aggregate,
    Estimate,
    Statistics,
    estimate_from_replicates,
    magnitude,
    replicates,
)
from harness.types import ROUNDING

_BOOLEANS_PER_BLOCK = 1 << 22  # one byte each


def paired_bootstrap(
    first: Statistics, second: Statistics, aggregate: Aggregate, *, seed: int, resamples: int = 2000
) -> tuple[Estimate, float]:
    """Compute second − first over the same items, and the p-value of "no difference".

    The replicates, shifted to mean 0, are the null distribution. The p-value is the fraction of them at least as far
    from 0 as the observed difference. 1 is added to both counts, so that it is never 0 (Riezler & Maxwell, 2005,
    aclanthology W05-0908; Davison & Hinkley, 1997, section 4.2).

    Args:
        first: Statistics of the items, see `intervals.difference`.
        second: Statistics of the same items in the same order.
        aggregate: Computes the score from the sum of the vectors.
        seed: Seed of the bootstrap.
        resamples: Number of bootstrap draws.

    Returns:
        The difference and p; p is NaN if there is no interval.
    """
    values, resampled = replicates([first, second], aggregate, seed=seed, resamples=resamples)
    observed = float(values[1] - values[0])
    differences = resampled[:, 1] - resampled[:, 0]
    scale = magnitude(values)
    estimate = estimate_from_replicates(observed, differences, len(first), scale)
    if math.isnan(estimate.stderr):
        return estimate, math.nan
    finite = differences[np.isfinite(differences)]
    # Differences of equal items are 0 up to rounding; rounding must not decide whether they count.
    slack = ROUNDING * scale
    extreme = int(np.count_nonzero(np.abs(finite - finite.mean()) >= abs(observed) - slack))
    return estimate, (extreme + 1) / (len(finite) + 1)


def approximate_randomization(
    first: Statistics, second: Statistics, aggregate: Aggregate, *, seed: int, trials: int = 10_000
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
        aggregate: Computes the score from the sum of the vectors.
        seed: Seed of the random swaps.
        trials: Number of random swaps of all items.

    Returns:
        p; NaN for fewer than two items or a score that is not finite.

    Raises:
        ValueError: The two have different shapes.
    """
    before, after = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    if before.shape != after.shape:
        raise ValueError(f"statistics of shapes {before.shape} and {after.shape} do not belong to the same items")
    total_before, total_after = before.sum(axis=0), after.sum(axis=0)
    scores = aggregate(total_after.tolist()), aggregate(total_before.tolist())
    observed, slack = abs(scores[0] - scores[1]), ROUNDING * magnitude(scores)
    if len(before) < 2 or not math.isfinite(observed):
        return math.nan
    generator, item_differences = np.random.default_rng(seed), before - after
    # numpy takes 32 booleans from each random number: blocks of a multiple of 32 trials give the same draws as one.
    block = max(32, _BOOLEANS_PER_BLOCK // len(before) // 32 * 32)
    extreme, finite = 0, 0
    for start in range(0, trials, block):
        swapped = generator.integers(2, size=(min(block, trials - start), len(before)), dtype=bool)
        moved = swapped @ item_differences  # (trials, statistics): moves from one total to the other
        for total, other in zip((total_after + moved).tolist(), (total_before - moved).tolist(), strict=True):
            difference = abs(aggregate(total) - aggregate(other))
            finite += math.isfinite(difference)
            extreme += difference >= observed - slack
    return (extreme + 1) / (finite + 1) if finite >= 0.95 * trials else math.nan


def mcnemar(first: Sequence[bool], second: Sequence[bool]) -> float:
    """Compute McNemar's exact p-value of "equally many items improved and worsened" (doi:10.1007/BF02295996).

    Items that did not change carry no information. If none changed, p is 1.

    Args:
        first: Whether each item was correct.
        second: The same for the same items in the same order.

    Raises:
        ValueError: The two have different lengths.
    """
    improved = sum(not before and after for before, after in zip(first, second, strict=True))
    worsened = sum(before and not after for before, after in zip(first, second, strict=True))
    changed = improved + worsened
    tail = sum(math.comb(changed, k) for k in range(min(improved, worsened) + 1))
    # Integers throughout: 2 ** -changed underflows for some thousands of changed items.
    return min(1.0, 2 * tail / 2**changed) if changed else 1.0


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjust p-values for multiple tests (Holm, 1979, jstor.org/stable/4615733); the order is kept.

    The k-th smallest of m is multiplied by m − k + 1 and raised to at least the adjusted value before it. NaN stays
    NaN and does not count towards m.
    """
    defined = [index for index, p in enumerate(p_values) if not math.isnan(p)]
    adjusted = list(p_values)
    highest = 0.0
    for rank, index in enumerate(sorted(defined, key=lambda index: p_values[index])):
        highest = max(highest, min(1.0, (len(defined) - rank) * p_values[index]))
        adjusted[index] = highest
    return adjusted
