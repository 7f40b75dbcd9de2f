"""Puts rows into slots of a fixed number of tokens, with as few tokens left over as it can."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness.data.slots import Slots


def pack(lengths: NDArray[Any], capacity: int) -> Slots:
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
    placed = np.array(_placed(different[::-1].tolist(), counts[::-1].tolist(), capacity), dtype=np.int64).reshape(-1, 3)
    first, packs, each = placed.T
    ends = np.cumsum(packs * each)
    event = np.repeat(np.arange(len(placed)), packs * each)
    pack_of = first[event] + (np.arange(len(lengths)) - (ends - packs * each)[event]) // each[event]
    members = np.argsort(-lengths, kind="stable")[np.argsort(pack_of, kind="stable")]
    return Slots(members, np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(np.bincount(pack_of))]))


def _placed(lengths: list[int], counts: list[int], capacity: int) -> list[tuple[int, int, int]]:
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
