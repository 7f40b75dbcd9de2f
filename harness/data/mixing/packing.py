"""Which rows are trained together in one sequence, for as many sequences as a stage has.

Two arrays instead of a tuple a slot: twelve bytes for a slot of one row.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray


class PackedSequences(Sequence[tuple[int, ...]]):
    """Slots, each the indices of its rows; an index may stand in several, a slot may have none.

    row_indices: (M,) int32, the indices, slot after slot. starts: (N + 1,) int64, where each slot begins in
    `row_indices`, and where the last one ends.
    """

    def __init__(self, row_indices: NDArray[Any], starts: NDArray[Any]) -> None:
        self.row_indices: NDArray[np.int32] = row_indices.astype(np.int32, copy=False)
        self.starts: NDArray[np.int64] = starts.astype(np.int64, copy=False)

    @classmethod
    def from_sequences(cls, sequences: Iterable[Sequence[int]]) -> PackedSequences:
        """Any slots as `PackedSequences`; those that are already stay the same object."""
        if isinstance(sequences, PackedSequences):
            return sequences
        given = [tuple(slot) for slot in sequences]
        members = np.array([index for slot in given for index in slot], dtype=np.int32)
        return cls(members, np.cumsum([0, *map(len, given)]))

    @classmethod
    def one_row_each(cls, indices: NDArray[Any]) -> PackedSequences:
        """One slot for each index."""
        return cls(indices, np.arange(len(indices) + 1))

    @classmethod
    def concatenate(cls, parts: Sequence[PackedSequences]) -> PackedSequences:
        """The slots of all parts, one part after the other."""
        counts = [np.zeros(1, dtype=np.int64), *(part.rows_per_sequence for part in parts)]
        return cls(np.concatenate([part.row_indices for part in parts]), np.cumsum(np.concatenate(counts)))

    @property
    def rows_per_sequence(self) -> NDArray[np.int64]:
        """(N,) rows in each slot."""
        return np.diff(self.starts)

    def sum_sizes(self, sizes: NDArray[Any]) -> NDArray[np.int64]:
        """(N,) the summed sizes of each slot's rows. sizes: of every row, e.g. its tokens."""
        upto = np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(sizes[self.row_indices], dtype=np.int64)])
        return np.diff(upto[self.starts])

    def select(self, indices: NDArray[Any]) -> PackedSequences:
        """The slots with these indices, in this order."""
        counts = self.rows_per_sequence[indices]
        starts = np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(counts)])
        within = np.arange(starts[-1]) - np.repeat(starts[:-1], counts)
        return PackedSequences(self.row_indices[np.repeat(self.starts[indices], counts) + within], starts)

    def remap(self, new_indices: NDArray[Any]) -> PackedSequences:
        """The same slots with row `names[i]` in the place of row i."""
        return PackedSequences(new_indices[self.row_indices], self.starts)

    def pad_to_multiple(self, multiple: int) -> PackedSequences:
        """The slots and as many empty ones as make their number a multiple of `multiple`."""
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
        place = range(len(self))[index]
        return tuple(self.row_indices[self.starts[place] : self.starts[place + 1]].tolist())

    def __iter__(self) -> Iterator[tuple[int, ...]]:
        return (self[place] for place in range(len(self)))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, PackedSequences):
            return NotImplemented
        return np.array_equal(self.row_indices, other.row_indices) and np.array_equal(self.starts, other.starts)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"Slots({len(self)} slots, {len(self.row_indices)} rows)"


def pack_rows(lengths: NDArray[Any], capacity: int) -> PackedSequences:
    """Packs of row indices, best-fit decreasing over all rows: each row goes where the least room is left over.

    lengths: (N,) tokens of each row, in [1, capacity]. Every index stands in exactly one pack; no pack holds more than
    `capacity` tokens. Needs at most 11/9 of the fewest packs possible, plus 4 (Johnson et al., 1974,
    doi:10.1137/0203025). Rows of equal length are interchangeable: the earlier one is placed first.

    Rows of one length are placed together, in as many packs of one room as they fill (as in Krell et al., 2021,
    arXiv:2107.02027), so that the time depends on how many different lengths there are, and hardly on N.
    Raises ValueError for a length outside [1, capacity].
    """
    lengths = np.asarray(lengths, dtype=np.int64)
    wrong = np.flatnonzero((lengths < 1) | (lengths > capacity))
    if len(wrong):
        raise ValueError(f"row {wrong[0]} has {lengths[wrong[0]]} tokens, not 1 to {capacity}")
    different, counts = np.unique(lengths, return_counts=True)
    placed = np.array(
        _plan_placement(different[::-1].tolist(), counts[::-1].tolist(), capacity), dtype=np.int64
    ).reshape(-1, 3)
    first, packs, each = placed.T
    ends = np.cumsum(packs * each)
    event = np.repeat(np.arange(len(placed)), packs * each)
    pack_of = first[event] + (np.arange(len(lengths)) - (ends - packs * each)[event]) // each[event]
    members = np.argsort(-lengths, kind="stable")[np.argsort(pack_of, kind="stable")]
    return PackedSequences(members, np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(np.bincount(pack_of))]))


def _plan_placement(lengths: list[int], counts: list[int], capacity: int) -> list[tuple[int, int, int]]:
    """Where the rows go, longest first: (first pack, packs, rows of this length in each of them), in order of the rows.

    lengths: the different ones, decreasing. counts: rows of each.
    """
    placed: list[tuple[int, int, int]] = []
    made = 0
    groups: dict[int, list[tuple[int, int]]] = {}  # room left -> runs of packs, as (first, number)
    rooms = 0  # bit r is set where some pack has room r left: finds the best fit without walking the packs
    for length, left in zip(lengths, counts, strict=True):
        while left:
            fitting = rooms >> length
            if fitting:
                room = length + (fitting & -fitting).bit_length() - 1
                first, packs = groups[room].pop()
            else:
                room, first, packs = capacity, made, -(-left // (capacity // length))
                made += packs
            # A pack that has just taken a row is the best fit for the next of the same length, until it is too full.
            each = room // length
            full = min(packs, left // each)
            rest = left - full * each if full < packs else 0
            for begin, number, taken in ((first, full, each), (first + full, min(rest, 1), rest)):
                if number:
                    placed.append((begin, number, taken))
                    left -= number * taken
                    groups.setdefault(room - taken * length, []).append((begin, number))
                    rooms |= 1 << (room - taken * length)
            used = full + min(rest, 1)
            if used < packs:
                groups[room].append((first + used, packs - used))
            if room < capacity and not groups[room]:
                rooms &= ~(1 << room)
    return placed
