"""Which rows of one source an epoch takes, to come as near a wanted size as whole rows can.

Knows sizes and an order in which rows are taken; nothing of the other sources of the mixture.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness.contracts import Unit

UNITS: tuple[Unit, ...] = ("rows", "tokens", "loss_tokens")

Indices = NDArray[np.intp]


@dataclass(frozen=True)
class Choice:
    """Rows that an epoch takes: every row of the source `copies` times, and `rows` (indices) once more."""

    copies: int
    rows: Indices

    def times(self, count: int) -> NDArray[np.int64]:
        """(count,) how often each row of the source is taken."""
        return self.copies + np.bincount(self.rows, minlength=count)


@dataclass(frozen=True)
class Supply:
    """The rows of a source as one epoch may take them.

    sizes: unit -> (N,) size of each row. order: (N,) the rows in the order in which they are taken.
    """

    sizes: Mapping[Unit, NDArray[np.int32]]
    order: Indices

    def total(self, unit: Unit) -> int:
        """The size of all rows, each taken once."""
        return int(self.sizes[unit].sum(dtype=np.int64))

    def everything(self) -> Choice:
        """Each row once."""
        return Choice(1, np.empty(0, dtype=np.intp))

    def near(self, unit: Unit, target: float, slack: float, upsample: bool) -> Choice:
        """Rows whose size comes near `target`, see `nearest`; at most everything once, unless `upsample`.

        With it every row is taken floor or ceil(target / total) times, as near as whole rows allow.
        """
        total = self.total(unit)
        copies = int(target // total)
        if copies and not upsample:
            return self.everything()
        sizes = self.sizes[unit][self.order]
        return Choice(copies, self.order[nearest(sizes, target - copies * total, slack, least=0 if copies else 1)])

    def taken(self, choice: Choice, unit: Unit) -> int:
        """The size of a choice."""
        return choice.copies * self.total(unit) + int(self.sizes[unit][choice.rows].sum(dtype=np.int64))


def nearest(sizes: NDArray[Any], target: float, slack: float = 0.0, least: int = 1) -> Indices:
    """Indices of sizes whose sum is as near `target` as a plain search brings it, in order.

    Takes sizes from the front while they fit, then the one of the others that brings the sum nearest; while the sum
    is still more than `slack` off, exchanges one for one. sizes: (N,) integers from 1. At least `least` (0 or 1)
    indices when target > 0 and there is any size.
    """
    if target <= 0 or not len(sizes):
        return np.empty(0, dtype=np.intp)
    upto = np.cumsum(sizes, dtype=np.int64)
    count = int(np.searchsorted(upto, target, side="right"))
    chosen = np.arange(count)
    gap = target - (int(upto[count - 1]) if count else 0)
    if count < len(sizes):
        best = int(np.argmin(np.abs(sizes[count:] - gap)))
        size = int(sizes[count + best])
        if count < least or abs(gap - size) < gap:
            chosen, gap = np.append(chosen, count + best), gap - size
    if abs(gap) > slack and 0 < len(chosen) < len(sizes):
        chosen = _exchanged(sizes, chosen, gap, slack)
    return np.sort(chosen)


def _exchanged(sizes: NDArray[Any], chosen: Indices, gap: float, slack: float) -> Indices:
    """The choice with members exchanged for others, the best pair first, until no exchange narrows the gap."""
    free = np.ones(len(sizes), dtype=bool)
    free[chosen] = False
    others = np.flatnonzero(free)
    others = others[np.argsort(sizes[others], kind="stable")]
    chosen = chosen.copy()
    while abs(gap) > slack:
        there = sizes[others]
        wanted = sizes[chosen] + gap
        after = np.searchsorted(there, wanted)
        near = np.stack([np.maximum(after - 1, 0), np.minimum(after, len(others) - 1)])  # (2, members)
        left = np.abs(wanted - there[near])  # the gap that each exchange would leave
        side = np.argmin(left, axis=0)
        left = np.take_along_axis(left, side[None], axis=0)[0]
        out = len(left) - 1 - int(np.argmin(left[::-1]))  # of equals the one taken last, so that the first ones stay
        if left[out] >= abs(gap):
            break
        back, place = chosen[out], int(near[side[out], out])
        gap -= float(there[place] - sizes[back])
        chosen[out] = others[place]
        others = np.delete(others, place)
        others = np.insert(others, np.searchsorted(sizes[others], sizes[back]), back)
    return chosen
