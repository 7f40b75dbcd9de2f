"""Packing: which rows are trained together in one sequence.

Two arrays hold all packed sequences, about twelve bytes for a sequence of one row::

    sequences      (4, 0)   (2,)   (1, 3, 5)
    row_indices     4  0     2      1  3  5      (M,) int32
    starts          0        2      3        6   (N + 1,) int64
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray


class PackedSequences(Sequence[tuple[int, ...]]):
    """Immutable list of N packed sequences, each a tuple of row indices.

    A row index may be in several sequences, and a sequence may have no rows.

    Attributes:
        row_indices: (M,) int32, the row indices, sequence after sequence.
        starts: (N + 1,) int64, where each sequence begins in `row_indices`, and where the last one ends.
    """

    def __init__(self, row_indices: NDArray[Any], starts: NDArray[Any]) -> None:
        self.row_indices: NDArray[np.int32] = row_indices.astype(np.int32, copy=False)
        self.starts: NDArray[np.int64] = starts.astype(np.int64, copy=False)

    @classmethod
    def from_sequences(cls, sequences: Iterable[Sequence[int]]) -> PackedSequences:
        """Convert any sequences of row indices; return `PackedSequences` unchanged."""
        if isinstance(sequences, PackedSequences):
            return sequences
        tuples = [tuple(sequence) for sequence in sequences]
        row_indices = np.array([index for sequence in tuples for index in sequence], dtype=np.int32)
        return cls(row_indices, _starts([len(sequence) for sequence in tuples]))

    @classmethod
    def one_row_each(cls, indices: NDArray[Any]) -> PackedSequences:
        """Return one sequence for each row index."""
        return cls(indices, np.arange(len(indices) + 1))

    @classmethod
    def concatenate(cls, parts: Sequence[PackedSequences]) -> PackedSequences:
        """Return the sequences of all parts, one part after the other."""
        counts = np.concatenate([np.zeros(0, dtype=np.int64), *(part.rows_per_sequence for part in parts)])
        return cls(np.concatenate([part.row_indices for part in parts]), _starts(counts))

    @property
    def rows_per_sequence(self) -> NDArray[np.int64]:
        """(N,) number of rows in each sequence."""
        return np.diff(self.starts)

    def sum_sizes(self, sizes: NDArray[Any]) -> NDArray[np.int64]:
        """Return the sum of the sizes of each sequence's rows, (N,). sizes: the size of every row, e.g. its tokens."""
        return np.diff(_starts(sizes[self.row_indices])[self.starts])

    def select(self, indices: NDArray[Any]) -> PackedSequences:
        """Return the sequences with these indices, in this order."""
        counts = self.rows_per_sequence[indices]
        starts = _starts(counts)
        within = np.arange(starts[-1]) - np.repeat(starts[:-1], counts)
        return PackedSequences(self.row_indices[np.repeat(self.starts[indices], counts) + within], starts)

    def remap(self, new_indices: NDArray[Any]) -> PackedSequences:
        """Return the same sequences with row index i replaced by `new_indices[i]`."""
        return PackedSequences(new_indices[self.row_indices], self.starts)

    def pad_to_multiple(self, multiple: int) -> PackedSequences:
        """Append empty sequences until the number of sequences is a multiple of `multiple`."""
        empty = np.full(-len(self) % multiple, self.starts[-1])
        return PackedSequences(self.row_indices, np.concatenate([self.starts, empty]))

    def __len__(self) -> int:
        return len(self.starts) - 1

    @overload
    def __getitem__(self, index: int) -> tuple[int, ...]: ...

    @overload
    def __getitem__(self, index: slice) -> PackedSequences: ...

    def __getitem__(self, index: int | slice) -> tuple[int, ...] | PackedSequences:
        if isinstance(index, slice):
            return self.select(np.arange(len(self))[index])
        position = range(len(self))[index]
        return tuple(self.row_indices[self.starts[position] : self.starts[position + 1]].tolist())

    def __iter__(self) -> Iterator[tuple[int, ...]]:
        return (self[index] for index in range(len(self)))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, PackedSequences):
            return NotImplemented
        return np.array_equal(self.row_indices, other.row_indices) and np.array_equal(self.starts, other.starts)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"PackedSequences({len(self)} sequences, {len(self.row_indices)} rows)"


def _starts(counts: Sequence[int] | NDArray[Any]) -> NDArray[np.int64]:
    """Return the cumulative sums of N counts with a leading 0, (N + 1,)."""
    return np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(counts, dtype=np.int64)])


def pack_rows(lengths: NDArray[Any], capacity: int) -> PackedSequences:
    """Pack rows by best-fit decreasing: each row goes where the least capacity is left over.

    Rows of equal length are interchangeable, so the earlier one is placed first. They are placed together, in as many
    packs of equal remaining capacity as they fill (as in Krell et al., 2021, arXiv:2107.02027). So the time depends on
    the number of different lengths, and hardly on N. Best-fit decreasing needs at most 11/9 of the fewest packs
    possible, plus 4 (Johnson et al., 1974, doi:10.1137/0203025)::

        lengths 7 6 3 2, capacity 10
        pack 0   |7 7 7 7 7 7 7|3 3 3|      rows (0, 2)
        pack 1   |6 6 6 6 6 6|2 2|. .|      rows (1, 3)

    Args:
        lengths: (N,) tokens of each row, in [1, capacity].
        capacity: Maximum number of tokens of a pack.

    Returns:
        Packs in which every row index occurs exactly once.

    Raises:
        ValueError: For a length outside of [1, capacity].
    """
    lengths = np.asarray(lengths, dtype=np.int64)
    invalid = np.flatnonzero((lengths < 1) | (lengths > capacity))
    if len(invalid):
        raise ValueError(f"row {invalid[0]} has {lengths[invalid[0]]} tokens, not 1 to {capacity}")
    distinct, counts = np.unique(lengths, return_counts=True)
    placements = np.array(
        _plan_placements(distinct[::-1].tolist(), counts[::-1].tolist(), capacity), dtype=np.int64
    ).reshape(-1, 3)
    first_packs, num_packs, rows_each = placements.T
    ends = np.cumsum(num_packs * rows_each)
    placement_of_row = np.repeat(np.arange(len(placements)), num_packs * rows_each)  # (N,), longest row first
    index_in_placement = np.arange(len(lengths)) - (ends - num_packs * rows_each)[placement_of_row]
    pack_of_row = first_packs[placement_of_row] + index_in_placement // rows_each[placement_of_row]
    row_indices = np.argsort(-lengths, kind="stable")[np.argsort(pack_of_row, kind="stable")]
    return PackedSequences(row_indices, _starts(np.bincount(pack_of_row)))


def _plan_placements(lengths: list[int], counts: list[int], capacity: int) -> list[tuple[int, int, int]]:
    """Decide where rows go, the longest first.

    Args:
        lengths: The distinct lengths, descending.
        counts: Number of rows of each length.
        capacity: Maximum number of tokens of a pack.

    Returns:
        (first pack, number of packs, rows of this length in each of them), in order of the rows.
    """
    placements: list[tuple[int, int, int]] = []
    num_packs = 0
    packs_by_free: dict[int, list[tuple[int, int]]] = {}  # free tokens -> ranges of packs: (first, count)
    free_bits = 0  # bit f is set where some pack has f free tokens: finds the best fit without a search of the packs
    for length, remaining in zip(lengths, counts, strict=True):
        while remaining:
            fitting = free_bits >> length
            if fitting:
                free = length + (fitting & -fitting).bit_length() - 1
                first, count = packs_by_free[free].pop()
            else:
                free, first, count = capacity, num_packs, -(-remaining // (capacity // length))
                num_packs += count
            # A pack that has just received a row is the best fit for the next of equal length, until it is too full.
            rows_each = free // length
            num_full = min(count, remaining // rows_each)
            num_rest = remaining - num_full * rows_each if num_full < count else 0
            for begin, packs, rows in ((first, num_full, rows_each), (first + num_full, min(num_rest, 1), num_rest)):
                if packs:
                    placements.append((begin, packs, rows))
                    remaining -= packs * rows
                    packs_by_free.setdefault(free - rows * length, []).append((begin, packs))
                    free_bits |= 1 << (free - rows * length)
            num_used = num_full + min(num_rest, 1)
            if num_used < count:
                packs_by_free[free].append((first + num_used, count - num_used))
            if free < capacity and not packs_by_free[free]:
                free_bits &= ~(1 << free)
    return placements
