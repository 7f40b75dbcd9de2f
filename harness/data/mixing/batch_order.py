"""The order in which an epoch's slots are trained.

Three things at once: the rows of every source are spread evenly through the epoch, the slots of a batch have similar
lengths, and everything else is random by the seed.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness.data.row_hashing import random_fraction, random_uint64

WINDOW_BATCHES = 16
"""Batches whose slots are grouped by length together."""

Indices = NDArray[np.intp]


def max_gap_without_source(
    num_sequences: int, num_with_source: int, num_sources: int, batch_size: int, packed: bool
) -> int:
    """The bound on consecutive slots of an epoch without a kind.

    slots: in the epoch. having: those of the kind. kinds: how many there are. Packed it is the even distance,
    slots / having + kinds - 2. Else it is two windows of `WINDOW_BATCHES` batches, within which slots move to be with
    others of their length, and the even distance as well where that is a window or more.
    """
    even = max(num_sequences // num_with_source + num_sources - 2, 0)
    window = WINDOW_BATCHES * batch_size
    return even if packed else (even if even >= window else 0) + 2 * (window - 1)


def interleave_sources(
    source_ids: NDArray[Any], seed: int, *purpose: str | int, repeat_indices: NDArray[Any] | None = None
) -> Indices:
    """The slots in a random order in which those of each kind stand at even distances.

    kinds: (N,) of every slot, small integers. The slots of a kind, shuffled, take the positions (j + u) / k of the
    unit interval, u random for each kind; between two of them stand at most N / k + number of kinds - 2 others.
    turns: (N,) slots of a lower turn come first within their kind.
    """
    repeat_indices = np.zeros(len(source_ids), dtype=np.int64) if repeat_indices is None else repeat_indices
    by_kind = np.lexsort((random_uint64(len(source_ids), seed, *purpose, "shuffle"), repeat_indices, source_ids))
    kind = source_ids[by_kind]
    counts = np.bincount(kind)
    places = np.arange(len(kind)) - (np.cumsum(counts) - counts)[kind]
    offsets = np.array([random_fraction(seed, *purpose, "offset", number) for number in range(len(counts))])
    return by_kind[np.lexsort((kind, (places + offsets[kind]) / counts[kind]))]


def group_by_length(
    order: Indices, lengths: NDArray[Any], batch_size: int, first_position: int, seed: int, *purpose: str | int
) -> Indices:
    """The slots of an epoch, moved within windows of `WINDOW_BATCHES` batches so that batches hold similar sizes.

    slots: in their even order. sizes: of every slot. start: how many slots stand before the epoch; batches and windows
    are cut from the whole order. The batches of a window stand in random order, and so do the slots of a batch.
    """
    window, rank = _windows_and_batch_ranks(len(order), batch_size, first_position, seed, *purpose)
    by_size = np.lexsort((lengths[order], window))
    filled = np.lexsort((random_uint64(len(order), seed, *purpose, "slots"), rank, window))
    moved = np.empty_like(order)
    moved[filled] = order[by_size]
    return moved


def group_by_length_within_source(
    order: Indices,
    source_ids: NDArray[Any],
    lengths: NDArray[Any],
    batch_size: int,
    first_position: int,
    seed: int,
    *purpose: str | int,
) -> Indices:
    """The same, but that a slot only takes the place of another of its kind: the even distances stay.

    kinds: of every slot. For slots that are about equally long whatever their kind, as packs are.
    """
    window, rank = _windows_and_batch_ranks(len(order), batch_size, first_position, seed, *purpose)
    kind = source_ids[order]
    by_size = np.lexsort((lengths[order], kind, window))
    filled = np.lexsort((random_uint64(len(order), seed, *purpose, "slots"), rank, kind, window))
    moved = np.empty_like(order)
    moved[filled] = order[by_size]
    return moved


def _windows_and_batch_ranks(
    count: int, batch_size: int, first_position: int, seed: int, *purpose: str | int
) -> tuple[Indices, Indices]:
    """The window of every place of an epoch, and the rank of its batch: the order in which a window's are filled."""
    place = first_position + np.arange(count)
    batch = place // batch_size
    batch -= batch[0] if count else 0
    random = random_uint64(int(batch[-1]) + 1 if count else 0, seed, *purpose, "batches")
    # The batches that an epoch's end cuts in two are filled first, with the shortest: they are not full anyway.
    broken = np.bincount(batch, minlength=len(random)) < batch_size
    rank = np.empty(len(random), dtype=np.intp)
    rank[np.lexsort((random, ~broken))] = np.arange(len(random))
    return place // (WINDOW_BATCHES * batch_size), rank[batch]


def padding_efficiency(lengths: NDArray[Any], batch_size: int) -> float:
    """Real tokens / token slots of sequences of these sizes in batches padded to the longest, in (0, 1]."""
    starts = np.arange(0, len(lengths), batch_size)
    counts = np.diff(np.append(starts, len(lengths)))
    return float(
        np.sum(lengths, dtype=np.int64) / np.sum(counts * np.maximum.reduceat(lengths, starts), dtype=np.int64)
    )
