"""The order in which a stage's rows are trained, epoch after epoch.

Three things at once: the rows of every source are spread evenly through an epoch, the rows of a batch have similar
lengths, and everything else is random by the seed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import floor
from random import Random

from harness.contracts import Row, Stage
from harness.data.packing import pack
from harness.seeds import generator

WINDOW = 16
"""Batches whose slots are grouped by length together."""


@dataclass(frozen=True)
class Order:
    """slots: indices of the rows trained together in one sequence, all epochs one after the other.

    epoch_ends: where in `slots` each epoch ends; the last lies beyond their end when that epoch is cut short.
    efficiency: real tokens / token slots, batches padded to their longest slot.
    """

    slots: tuple[tuple[int, ...], ...]
    epoch_ends: tuple[int, ...]
    efficiency: float


def order(stage: Stage, rows: Sequence[Row], seed: int) -> Order:
    """The order of a stage's rows, as `stage.train` says: epochs or steps, batch_size, accumulation, packing.

    Every row stands once in each whole epoch. `steps` sets the number of slots exactly; fractions of an epoch are
    rounded to whole slots, at least one. Batches are cut from the whole order, across the ends of epochs.
    """
    train = stage.train
    lengths = [len(row.input_ids) for row in rows]
    slots = pack(lengths, train["max_length"]) if train["packing"] else [(index,) for index in range(len(rows))]
    sizes = [sum(lengths[index] for index in slot) for slot in slots]
    kinds = _kinds(slots, rows)
    batch = train["batch_size"]
    if train["steps"] is not None:
        total = train["steps"] * batch * train["accumulation"]
    else:
        total = max(1, floor(train["epochs"] * len(slots) + 0.5))
    walked: list[int] = []
    ends: list[int] = []
    while len(walked) < total:
        random = generator(seed, "order", stage.name, len(ends))
        ends.append(len(walked) + len(slots))
        # Cut before lengths are grouped: the beginning of an even spread holds every source in its share.
        begun = spread(kinds, random)[: total - len(walked)]
        walked += grouped(begun, sizes, batch, len(walked), random)
    return Order(tuple(slots[slot] for slot in walked), tuple(ends), efficiency([sizes[s] for s in walked], batch))


def longest_stretch(slots: int, having: int, kinds: int, batch_size: int) -> int:
    """The bound on consecutive slots of an epoch without one of a kind.

    slots: in the epoch. having: those of the kind. kinds: how many there are in the stage. It is the even distance,
    slots / having, plus two windows of `WINDOW` batches, in which slots may move to be with others of their length.
    """
    return slots // having + kinds + 2 * WINDOW * batch_size


def spread(kinds: Sequence[str], random: Random) -> list[int]:
    """A random order of the slots in which each kind's stand at even distances.

    The slots of a kind, shuffled, take the positions (j + u) / k of the unit interval, u random for each kind; between
    two of them stand at most n / k + number of kinds - 2 others.
    """
    members: dict[str, list[int]] = {}
    for slot, kind in enumerate(kinds):
        members.setdefault(kind, []).append(slot)
    placed = []
    for kind in sorted(members):
        random.shuffle(members[kind])
        offset = random.random()
        placed += [((j + offset) / len(members[kind]), kind, slot) for j, slot in enumerate(members[kind])]
    return [slot for _, _, slot in sorted(placed)]


def grouped(slots: Sequence[int], sizes: Sequence[int], batch_size: int, start: int, random: Random) -> list[int]:
    """The slots of an epoch, moved within windows of `WINDOW` batches so that batches hold similar sizes.

    sizes: of every slot. start: how many slots stand before the epoch; batches and windows are cut from the whole
    order. The batches of a window stand in random order, and so do the slots of a batch.
    """
    moved: list[int] = []
    while len(moved) < len(slots):
        begin = start + len(moved)
        end = min(start + len(slots), (begin // (WINDOW * batch_size) + 1) * WINDOW * batch_size)
        window = sorted(slots[len(moved) : end - start], key=lambda slot: sizes[slot])
        cuts = [begin, *range((begin // batch_size + 1) * batch_size, end, batch_size), end]
        counts = [after - before for before, after in pairwise(cuts)]
        whole = [place for place, count in enumerate(counts) if count == batch_size]
        broken = [place for place, count in enumerate(counts) if count != batch_size]
        random.shuffle(whole)
        batches: list[list[int]] = [[] for _ in counts]
        taken = 0
        for place in broken + whole:  # the batches that an epoch's end cuts in two keep their places
            batches[place] = window[taken : taken + counts[place]]
            random.shuffle(batches[place])
            taken += counts[place]
        moved += [slot for members in batches for slot in members]
    return moved


def efficiency(sizes: Sequence[int], batch_size: int) -> float:
    """Real tokens / token slots of sequences of these sizes in batches padded to the longest, in (0, 1]."""
    batches = [sizes[at : at + batch_size] for at in range(0, len(sizes), batch_size)]
    return sum(sizes) / sum(len(members) * max(members) for members in batches)


def _kinds(slots: Sequence[tuple[int, ...]], rows: Sequence[Row]) -> list[str]:
    """The kind of each slot: the source, of those of its rows, that has the fewest rows in the stage."""
    counts = Counter(row.source for row in rows)
    return [min((rows[index].source for index in slot), key=lambda source: (counts[source], source)) for slot in slots]
