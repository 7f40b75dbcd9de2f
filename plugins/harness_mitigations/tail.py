"""How importances are spread, and cutting their heavy tail.

A language model's Fisher is heavy-tailed: a few of the weights hold much of the mass, so its mean says little of most.
All is read off one histogram of the numbers' leading 16 bits: counts are exact, values within 0.4 %, and no number is
sorted or copied.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

TOP = 0.001
"""The share of the weights whose share of the mass is told."""

BINS = 2**15
SLICE = 2**22
INFINITE = 0x7F80
"""The leading bits of infinity; those of what is no number lie above."""


def histogram(importances: Iterable[Tensor]) -> Tensor:
    """How many of the numbers, none of them negative, have each leading 16 bits. Returns (2^15,) int64, on the CPU."""
    counts = torch.zeros(BINS, dtype=torch.int64)
    for tensor in importances:
        for some in tensor.float().flatten().split(SLICE):
            counts += torch.bincount(some.view(torch.int32) >> 16, minlength=BINS).cpu()
    return counts


def middles() -> Tensor:
    """The number in the middle of each bin of a histogram; 0 for that of 0. Returns (2^15,) float64."""
    bits = (torch.arange(BINS, dtype=torch.int32) << 16) + 0x8000
    values = bits.view(torch.float32).double()
    values[0] = 0.0
    return values


def quantile(counts: Tensor, q: float) -> float:
    """The value that a share of q of the numbers does not exceed, within 0.4 %. counts: see `histogram`."""
    upto = counts.cumsum(0)
    index = int(torch.searchsorted(upto, torch.tensor(q * float(upto[-1])).ceil().long().clamp(min=1)))
    return float(middles()[index])


def is_finite(counts: Tensor) -> bool:
    """Whether every number is finite."""
    return not bool(counts[INFINITE:].any())


def describe(counts: Tensor) -> dict[str, float]:
    """The spread in numbers: median, 99.9th percentile and largest over the mean, and the share of the mass that the
    largest 0.1 % of the numbers hold. Empty when the mean is 0."""
    values = middles()
    values[INFINITE:] = 0.0
    masses = counts * values
    mean = float(masses.sum() / counts.sum())
    if mean == 0:
        return {}
    beyond = int((TOP * counts.sum()).ceil())
    above = counts.flip(0).cumsum(0)  # how many numbers lie in the highest bins
    whole = above <= beyond
    held = float(masses.flip(0)[whole].sum())
    partly = int(whole.sum())  # the bin that only some of the largest come from
    if partly < BINS:
        taken = beyond - (int(above[partly - 1]) if partly else 0)
        held += taken * float(values.flip(0)[partly])
    largest = float(values[counts.nonzero()[-1]])
    return {
        "fisher_median": quantile(counts, 0.5) / mean,
        "fisher_p99.9": quantile(counts, 0.999) / mean,
        "fisher_largest": largest / mean,
        "fisher_mass_of_top_0.1_percent": held / float(masses.sum()),
    }
