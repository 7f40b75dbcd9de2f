"""The order in which an epoch's slots are trained.

Three things at once: the rows of every source are spread evenly through the epoch, the slots of a batch have similar
lengths, and everything else is random by the seed.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness.data.row_hashing import fraction, numbers

WINDOW = 16
"""Batches whose slots are grouped by length together."""

Indices = NDArray[np.intp]


def longest_stretch(slots: int, having: int, kinds: int, batch_size: int, packed: bool) -> int:
    """The bound on consecutive slots of an epoch without a kind.

    slots: in the epoch. having: those of the kind. kinds: how many there are. Packed it is the even distance,
    slots / having + kinds - 2. Else it is two windows of `WINDOW` batches, within which slots move to be with others
    of their length, and the even distance as well where that is a window or more.
    """
    even = max(slots // having + kinds - 2, 0)
    window = WINDOW * batch_size
    return even if packed else (even if even >= window else 0) + 2 * (window - 1)


def spread(kinds: NDArray[Any], seed: int, *purpose: str | int, turns: NDArray[Any] | None = None) -> Indices:
    """The slots in a random order in which those of each kind stand at even distances.

    kinds: (N,) of every slot, small integers. The slots of a kind, shuffled, take the positions (j + u) / k of the
    unit interval, u random for each kind; between two of them stand at most N / k + number of kinds - 2 others.
    turns: (N,) slots of a lower turn come first within their kind.
    """
    turns = np.zeros(len(kinds), dtype=np.int64) if turns is None else turns
    by_kind = np.lexsort((numbers(len(kinds), seed, *purpose, "shuffle"), turns, kinds))
    kind = kinds[by_kind]
    counts = np.bincount(kind)
    places = np.arange(len(kind)) - (np.cumsum(counts) - counts)[kind]
    offsets = np.array([fraction(seed, *purpose, "offset", number) for number in range(len(counts))])
    return by_kind[np.lexsort((kind, (places + offsets[kind]) / counts[kind]))]


def grouped(
    slots: Indices, sizes: NDArray[Any], batch_size: int, start: int, seed: int, *purpose: str | int
) -> Indices:
    """The slots of an epoch, moved within windows of `WINDOW` batches so that batches hold similar sizes.

    slots: in their even order. sizes: of every slot. start: how many slots stand before the epoch; batches and windows
    are cut from the whole order. The batches of a window stand in random order, and so do the slots of a batch.
    """
    window, rank = _cut(len(slots), batch_size, start, seed, *purpose)
    by_size = np.lexsort((sizes[slots], window))
    filled = np.lexsort((numbers(len(slots), seed, *purpose, "slots"), rank, window))
    moved = np.empty_like(slots)
    moved[filled] = slots[by_size]
    return moved


def grouped_by_kind(
    slots: Indices,
    kinds: NDArray[Any],
    sizes: NDArray[Any],
    batch_size: int,
    start: int,
    seed: int,
    *purpose: str | int,
) -> Indices:
    """The same, but that a slot only takes the place of another of its kind: the even distances stay.

    kinds: of every slot. For slots that are about equally long whatever their kind, as packs are.
    """
    window, rank = _cut(len(slots), batch_size, start, seed, *purpose)
    kind = kinds[slots]
    by_size = np.lexsort((sizes[slots], kind, window))
    filled = np.lexsort((numbers(len(slots), seed, *purpose, "slots"), rank, kind, window))
    moved = np.empty_like(slots)
    moved[filled] = slots[by_size]
    return moved


def _cut(count: int, batch_size: int, start: int, seed: int, *purpose: str | int) -> tuple[Indices, Indices]:
    """The window of every place of an epoch, and the rank of its batch: the order in which a window's are filled."""
    place = start + np.arange(count)
    batch = place // batch_size
    batch -= batch[0] if count else 0
    random = numbers(int(batch[-1]) + 1 if count else 0, seed, *purpose, "batches")
    # The batches that an epoch's end cuts in two are filled first, with the shortest: they are not full anyway.
    broken = np.bincount(batch, minlength=len(random)) < batch_size
    rank = np.empty(len(random), dtype=np.intp)
    rank[np.lexsort((random, ~broken))] = np.arange(len(random))
    return place // (WINDOW * batch_size), rank[batch]


def efficiency(sizes: NDArray[Any], batch_size: int) -> float:
    """Real tokens / token slots of sequences of these sizes in batches padded to the longest, in (0, 1]."""
    starts = np.arange(0, len(sizes), batch_size)
    counts = np.diff(np.append(starts, len(sizes)))
    return float(np.sum(sizes, dtype=np.int64) / np.sum(counts * np.maximum.reduceat(sizes, starts), dtype=np.int64))
