"""Whether a difference is more than chance, and what is left of it when many are looked at.

Knows paired statistics of items; neither runs nor metrics. Every test is two-sided.
"""

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

_DRAWN = 1 << 22  # booleans drawn at a time, a byte each


def paired_bootstrap(
    first: Statistics, second: Statistics, aggregate: Aggregate, *, seed: int, resamples: int = 2000
) -> tuple[Estimate, float]:
    """second − first over the same items, and the p-value of "no difference".

    first, second: statistics of the same items in the same order, see `intervals.difference`.
    The replicates, moved so that their mean is 0, are what chance alone would give; p is the share of them that lies
    at least as far from 0 as the difference found, one counted more on both sides so that it is never 0 (Riezler &
    Maxwell, 2005, aclanthology W05-0908; Davison & Hinkley, 1997, section 4.2). NaN where there is no interval.
    """
    values, drawn = replicates([first, second], aggregate, seed=seed, resamples=resamples)
    found = float(values[1] - values[0])
    differences = drawn[:, 1] - drawn[:, 0]
    scale = magnitude(values)
    estimate = estimate_from_replicates(found, differences, len(first), scale)
    if math.isnan(estimate.stderr):
        return estimate, math.nan
    known = differences[np.isfinite(differences)]
    # Differences of equal items are 0 but for rounding, which must not count as beyond what was found.
    slack = ROUNDING * scale
    beyond = int(np.count_nonzero(np.abs(known - known.mean()) >= abs(found) - slack))
    return estimate, (beyond + 1) / (len(known) + 1)


def approximate_randomization(
    first: Statistics, second: Statistics, aggregate: Aggregate, *, seed: int, trials: int = 10_000
) -> float:
    """The p-value of "no difference" when chance decides, item by item, which of the two it belongs to.

    The paired test of corpus scores, which are no mean of their items (Noreen, 1989; Riezler & Maxwell, 2005,
    aclanthology W05-0908): the share of trials with a difference at least as large as the one found, one counted more
    on both sides. It draws as sacrebleu's `PairedTest(test_type="ar")` does, so that the same seed gives the same p;
    only a trial with just the difference found counts here and not there, which makes p = 1 of equal runs.

    first, second: statistics of the same items in the same order. NaN for fewer than two items, and where a score is
    not finite. Raises ValueError when the two have not the same shape.
    """
    before, after = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    if before.shape != after.shape:
        raise ValueError(f"statistics of shape {before.shape} and {after.shape} are not of the same items")
    total_before, total_after = before.sum(axis=0), after.sum(axis=0)
    ends = aggregate(total_after.tolist()), aggregate(total_before.tolist())
    found, slack = abs(ends[0] - ends[1]), ROUNDING * magnitude(ends)
    if len(before) < 2 or not math.isfinite(found):
        return math.nan
    random, apart = np.random.default_rng(seed), before - after
    # numpy draws 32 booleans from each number: blocks of a multiple of 32 trials draw what one large block would.
    block = max(32, _DRAWN // len(before) // 32 * 32)
    beyond, counted = 0, 0
    for start in range(0, trials, block):
        stays = random.integers(2, size=(min(block, trials - start), len(before)), dtype=bool)
        moved = stays @ apart  # what changes places between the two totals
        for one, other in zip((total_after + moved).tolist(), (total_before - moved).tolist(), strict=True):
            difference = abs(aggregate(one) - aggregate(other))
            counted += math.isfinite(difference)
            beyond += difference >= found - slack
    return (beyond + 1) / (counted + 1) if counted >= 0.95 * trials else math.nan


def mcnemar(first: Sequence[bool], second: Sequence[bool]) -> float:
    """The p-value of "as many items turned right as wrong", exact (McNemar, 1947, doi:10.1007/BF02295996).

    first, second: whether each item was right, the same items in the same order. Items that did not change tell
    nothing; when none changed p is 1. Raises ValueError when the two are not equally long.
    """
    gained = sum(not before and after for before, after in zip(first, second, strict=True))
    lost = sum(before and not after for before, after in zip(first, second, strict=True))
    changed, fewer = gained + lost, min(gained, lost)
    tail = sum(math.comb(changed, k) for k in range(fewer + 1))
    # Integers throughout: 2 ** -changed is no float for some thousands of changed items.
    return min(1.0, 2 * tail / 2**changed) if changed else 1.0


def holm(p_values: Sequence[float]) -> list[float]:
    """The p-values adjusted for having looked at all of them (Holm, 1979, jstor.org/stable/4615733), in their order.

    The k-th smallest of m is multiplied by m − k + 1, and none ends below a smaller one. What is no number stays none
    and is not counted.
    """
    known = [index for index, p in enumerate(p_values) if not math.isnan(p)]
    adjusted = list(p_values)
    highest = 0.0
    for rank, index in enumerate(sorted(known, key=lambda index: p_values[index])):
        highest = max(highest, min(1.0, (len(known) - rank) * p_values[index]))
        adjusted[index] = highest
    return adjusted
