"""Puts rows into slots of a fixed number of tokens, with as few tokens left over as it can."""

from __future__ import annotations

from collections.abc import Sequence


def pack(lengths: Sequence[int], capacity: int) -> list[tuple[int, ...]]:
    """Packs of row indices, best-fit decreasing over all rows: each row goes where the least room is left over.

    lengths: tokens of each row, in [1, capacity]. Every index stands in exactly one pack; no pack holds more than
    `capacity` tokens. Needs at most 11/9 of the fewest packs possible, plus 4 (Johnson et al., 1974,
    doi:10.1137/0203025). Rows of equal length are interchangeable: the earlier one is placed first.
    Raises ValueError for a length outside [1, capacity].
    """
    packs: list[list[int]] = []
    open_packs: list[list[int]] = [[] for _ in range(capacity + 1)]  # by room left
    rooms = 0  # bit r is set where some pack has room r left: finds the best fit without walking the packs
    for index in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
        length = lengths[index]
        if not 1 <= length <= capacity:
            raise ValueError(f"row {index} has {length} tokens, not 1 to {capacity}")
        fitting = rooms >> length
        if fitting:
            room = length + (fitting & -fitting).bit_length() - 1
            place = open_packs[room].pop()
            if not open_packs[room]:
                rooms ^= 1 << room
        else:
            room, place = capacity, len(packs)
            packs.append([])
        packs[place].append(index)
        open_packs[room - length].append(place)
        rooms |= 1 << (room - length)
    return [tuple(members) for members in packs]
