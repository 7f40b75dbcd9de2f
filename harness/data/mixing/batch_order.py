"""The order in which the packed sequences of an epoch are trained.

The sequences of every source are spread evenly over the epoch; everything else is random by the seed. The sequences of
a padded batch also have similar lengths. A sequence is one row, or several packed rows.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness.data.row_hashing import random_fraction, random_uint64

WINDOW_BATCHES = 16
"""Batches whose sequences are grouped by length together."""

Indices = NDArray[np.intp]


def interleave_sources(
    source_ids: NDArray[Any],
    seed: int,
    *purpose: str | int,
    repeat_indices: NDArray[Any] | None = None,
    keys: NDArray[Any] | None = None,
) -> Indices:
    """Return a random order of N sequences in which the sequences of each source have even distances.

    The k sequences of a source, shuffled or by their keys, take the positions (j + u) / k of the unit interval, with
    one random u for each source. Between two of them are at most N / k + (number of sources) - 2 others.

    Args:
        source_ids: (N,) the source of each sequence, small integers.
        seed: The seed.
        *purpose: What the order is for, see `seeding.derive_seed`.
        repeat_indices: (N,) sequences with a lower number come first within their source.
        keys: (N,) among them, sequences with a lower key come first.
    """
    equal = np.zeros(len(source_ids), dtype=np.int64)
    repeat_indices, keys = (equal if rank is None else rank for rank in (repeat_indices, keys))
    random = random_uint64(len(source_ids), seed, *purpose, "shuffle")
    shuffled = np.lexsort((random, keys, repeat_indices, source_ids))
    sources = source_ids[shuffled]
    counts = np.bincount(sources)
    ranks = np.arange(len(sources)) - (np.cumsum(counts) - counts)[sources]  # j, within the source
    offsets = np.array([random_fraction(seed, *purpose, "offset", source) for source in range(len(counts))])  # u
    return shuffled[np.lexsort((sources, (ranks + offsets[sources]) / counts[sources]))]


def group_by_length(
    order: Indices,
    lengths: NDArray[Any],
    batch_size: int,
    first_position: int,
    seed: int,
    *purpose: str | int,
    within: NDArray[Any] | None = None,
) -> Indices:
    """Reorder sequences within windows of `WINDOW_BATCHES` batches, so that batches hold similar lengths.

    The batches of a window are in random order, and so are the sequences of a batch::

        lengths in order   7 2 9 | 4 8 1 | 3 6 5     window of 3 batches of 3
        grouped            6 4 5 | 9 7 8 | 2 1 3

    Args:
        order: (N,) the sequences of the epoch, in their even order.
        lengths: Tokens of each sequence.
        batch_size: Sequences of a batch.
        first_position: Number of sequences before the epoch. Batches and windows are cut from the complete order.
        seed: The seed.
        *purpose: What the order is for, see `seeding.derive_seed`.
        within: The source of each sequence. With it, a sequence only changes places with others of its source, so the
            even distances stay. Use it for sequences of similar length in every source, such as packed ones.
    """
    windows, batch_ranks = _windows_and_batch_ranks(len(order), batch_size, first_position, seed, *purpose)
    groups = (windows,) if within is None else (within[order], windows)
    by_length = np.lexsort((lengths[order], *groups))
    # "slots" is part of the seed's purpose: another word would change the order.
    positions = np.lexsort((random_uint64(len(order), seed, *purpose, "slots"), batch_ranks, *groups))
    grouped = np.empty_like(order)
    grouped[positions] = order[by_length]
    return grouped


def _windows_and_batch_ranks(
    count: int, batch_size: int, first_position: int, seed: int, *purpose: str | int
) -> tuple[Indices, Indices]:
    """Return the window of every position of an epoch, and the rank of its batch.

    The rank is the order in which a window's batches are filled.
    """
    positions = first_position + np.arange(count)
    batches = positions // batch_size
    batches -= batches[0] if count else 0
    random = random_uint64(int(batches[-1]) + 1 if count else 0, seed, *purpose, "batches")
    # The batches that an end of the epoch splits are filled first, with the shortest: they are not full anyway.
    is_partial = np.bincount(batches, minlength=len(random)) < batch_size
    ranks = np.empty(len(random), dtype=np.intp)
    ranks[np.lexsort((random, ~is_partial))] = np.arange(len(random))
    return positions // (WINDOW_BATCHES * batch_size), ranks[batches]


def padding_efficiency(lengths: NDArray[Any], batch_size: int) -> float:
    """Return the fraction of real tokens in batches padded to their longest sequence, in (0, 1].

    Args:
        lengths: (N,) tokens of each sequence, in order.
        batch_size: Sequences of a batch.
    """
    starts = np.arange(0, len(lengths), batch_size)
    counts = np.diff(np.append(starts, len(lengths)))
    num_positions = np.sum(counts * np.maximum.reduceat(lengths, starts), dtype=np.int64)
    return float(np.sum(lengths, dtype=np.int64) / num_positions)


def largest_batch_tokens(lengths: NDArray[Any], batch_size: int, *, is_padded: bool) -> int:
    """Return the tokens of the largest batch, padding included. Arguments as in `padding_efficiency`."""
    starts = np.arange(0, len(lengths), batch_size)
    if not is_padded:
        return int(np.add.reduceat(lengths, starts, dtype=np.int64).max())
    counts = np.diff(np.append(starts, len(lengths)))
    return int((counts * np.maximum.reduceat(lengths, starts)).max())
