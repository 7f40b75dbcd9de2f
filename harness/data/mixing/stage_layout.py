"""From the tokenised rows of a stage's sources to all that is trained, in order: the mixture laid out in slots.

Knows the order of the work: draw an epoch's rows, pack them, spread them, group them by length, count what came of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import floor
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness.data.mixing import batch_order, partial_epochs
from harness.data.mixing.mixture import TOLERANCE, UNITS, Aim, Drawn, Mixture
from harness.data.mixing.packing import Slots, pack
from harness.data.mixing.partial_epochs import Missed
from harness.data.row_hashing import shuffled
from harness.data.tokenization.tokenized_rows import Rows
from harness.errors import HarnessError
from harness.types import Row, Stage, StageData, Unit


def lay(stage: Stage, pools: Mapping[str, Rows], seed: int, processes: int = 1) -> StageData:
    """The rows of a stage and their order, as its parts, shares and `train` say; the same for the same seed.

    pools: source -> its tokenised training rows, cut to `max_length`, for every part of the stage. Every epoch has the
    rows that `Mixture` draws, spread evenly (`batches.longest_stretch` is the bound on slots without a source).
    `steps` sets the number of slots exactly; a fraction of an epoch is rounded to whole slots, one in all at least,
    and holds every source in proportion, and every share as it was asked for (see `cuts`). Batches are cut from the
    whole order, across the ends of epochs. processes: that share the training; an update takes batches of each.
    Raises HarnessError when a share would lie more than half a point of the mixture from the one asked for, in an epoch
    or, of a stage that ends within one, in all that it trains; the error says what is possible.
    """
    try:
        return _laid(stage, pools, seed, processes)
    except Missed as error:
        raise error.told(lambda other: _fits(other, pools, seed, processes)) from None


def _fits(stage: Stage, pools: Mapping[str, Rows], seed: int, processes: int) -> bool:
    try:
        _laid(stage, pools, seed, processes)
    except (Missed, HarnessError):
        return False
    return True


def _laid(stage: Stage, pools: Mapping[str, Rows], seed: int, processes: int) -> StageData:
    train = stage.train
    mixture = Mixture(stage, pools, seed)
    rows = Rows.join([pools[part.source] for part in stage.parts])
    source = np.repeat(np.arange(len(stage.parts)), [len(pools[part.source]) for part in stage.parts])
    by_unit: dict[Unit, NDArray[Any]] = {"tokens": rows.lengths, "loss_tokens": rows.loss_tokens}
    by_unit["rows"] = np.broadcast_to(np.int32(1), len(rows))
    update = train["batch_size"] * train["accumulation"] * processes
    total = None if train["steps"] is None else train["steps"] * update
    used = np.zeros(len(rows), dtype=bool)
    walked: list[Slots] = []
    ends: list[int] = []
    begun = 0
    while begun < total if total is not None else len(ends) < train["epochs"]:
        if not ends or mixture.resampled:
            epoch = _Epoch(mixture.draw(), rows.lengths, source, stage, seed, len(ends))
        whole = len(epoch.slots)
        left = floor((train["epochs"] - len(ends)) * whole + 0.5) if total is None else total - begun
        count = min(whole, max(left, 0 if ends else 1))
        if not count:
            break
        taken = None
        if count < whole and stage.shares:
            taken = _taken(epoch, count, len(ends), mixture.aims(), by_unit, source, walked)
        walked.append(epoch.order(count, begun, len(ends), taken))
        used[walked[-1].members] = True
        ends.append(begun + whole)
        begun += count
    names = np.cumsum(used) - 1
    slots = Slots.join(walked).renamed(names)
    kept = np.flatnonzero(used)
    counted = [_totals(one.members, by_unit, source, len(stage.parts)) for one in walked]
    return StageData(
        stage=stage,
        rows=rows.take(kept),
        order=slots,
        epoch_ends=tuple(ends),
        shares=_shares(stage, sum(counted[1:], counted[0])),
        efficiency=batch_order.efficiency(slots.sums(rows.lengths[kept]), train["batch_size"]),
        epoch_shares=tuple(_shares(stage, one) for one in counted),
    )


def _taken(
    epoch: _Epoch,
    count: int,
    number: int,
    aims: Sequence[Aim],
    by_unit: Mapping[Unit, NDArray[Any]],
    source: NDArray[Any],
    walked: Sequence[Slots],
) -> NDArray[np.bool_]:
    """(N,) the slots that are trained of an epoch of which only `count` are, by which every share is met.

    In these slots alone where that can be had, else in all that the stage trains. Raises Missed where in neither.
    """
    sizes = partial_epochs.measured(epoch.slots, aims, by_unit, source)
    wanted = np.array([aim.amount for aim in aims])
    nothing = np.zeros((2, len(aims)), np.int64)
    before = sum((partial_epochs.measured(one, aims, by_unit, source).sum(axis=2) for one in walked), nothing)
    inside = np.zeros(len(epoch.slots), bool)
    inside[epoch.spread(number)[:count]] = True
    turns = np.zeros(len(inside), np.int64) if epoch.turns is None else epoch.turns
    for beside in (nothing, before):
        cut = partial_epochs.Cut(sizes, wanted, epoch.kinds, turns, beside)
        inside = partial_epochs.exchanged(inside, cut)
        if cut.missed(inside) <= TOLERANCE + 1e-9:
            return inside
    slots = count + sum(map(len, walked))
    raise Missed(epoch.stage, aims, partial_epochs.realised(cut.totals(inside)), slots)


def sizes(rows: Sequence[Row]) -> dict[str, dict[str, int]]:
    """Source -> its rows, their tokens and loss tokens, each row counted once. Sources without a row are left out."""
    counted = rows if isinstance(rows, Rows) else Rows.of(rows)
    found: dict[str, dict[str, int]] = {}
    for number, name in enumerate(counted.source_names):
        mine = counted.source == number
        if mine.any():
            tokens, trained = (int(of[mine].sum(dtype=np.int64)) for of in (counted.lengths, counted.loss_tokens))
            found[name] = {"rows": int(mine.sum()), "tokens": tokens, "loss_tokens": trained}
    return found


class _Epoch:
    """The rows of an epoch in slots, and what is needed to put them in order.

    lengths, source: of the joined pools, tokens of each row and the part that it belongs to.
    """

    def __init__(
        self, drawn: Drawn, lengths: NDArray[Any], source: NDArray[Any], stage: Stage, seed: int, number: int
    ) -> None:
        self.drawn, self.stage, self.seed = drawn, stage, seed
        self.packed: bool = stage.train["packing"]
        self.turns: NDArray[Any] | None = drawn.turns
        if self.packed:
            # Rows of one length are packed in the order given: shuffled, so that no source comes before another.
            rows = drawn.rows[shuffled(len(drawn.rows), seed, "pack", stage.name, number)]
            self.slots, self.turns = pack(lengths[rows], stage.train["max_length"]).renamed(rows), None
        else:
            self.slots = Slots.single(drawn.rows)
        self.sizes = self.slots.sums(lengths)
        self.kinds = _kinds(self.slots, source, np.bincount(source[drawn.rows], minlength=len(stage.parts)))

    def spread(self, number: int, slots: NDArray[Any] | None = None) -> NDArray[np.intp]:
        """The slots, or some of them, in an even order. number: of the epoch, from 0."""
        every = np.arange(len(self.slots)) if slots is None else slots
        turns = None if self.turns is None else self.turns[every]
        return every[batch_order.spread(self.kinds[every], self.seed, "order", self.stage.name, number, turns=turns)]

    def order(self, count: int, begun: int, number: int, inside: NDArray[np.bool_] | None = None) -> Slots:
        """The first `count` slots of the epoch in its order, or those `inside`. begun: slots before it."""
        purpose = ("order", self.stage.name, number)
        # Cut before lengths are grouped: the beginning of an even spread holds every source in its share.
        spread = self.spread(number)[:count]
        if inside is not None and not inside[spread].all():
            spread = self.spread(number, np.flatnonzero(inside))
        batch = self.stage.train["batch_size"]
        if self.packed:
            return self.slots.take(
                batch_order.grouped_by_kind(spread, self.kinds, self.sizes, batch, begun, self.seed, *purpose)
            )
        return self.slots.take(batch_order.grouped(spread, self.sizes, batch, begun, self.seed, *purpose))


def _kinds(slots: Slots, source: NDArray[Any], counts: NDArray[Any]) -> NDArray[np.int64]:
    """The kind of each slot: the part, of those of its rows, that has the fewest rows in the epoch."""
    by_count = np.argsort(counts, kind="stable")
    rarity = np.empty(len(counts), dtype=np.int64)
    rarity[by_count] = np.arange(len(counts))
    kinds = np.minimum.reduceat(rarity[source[slots.members]], slots.starts[:-1])
    there = np.bincount(kinds, minlength=len(counts)) > 0
    return (np.cumsum(there) - 1)[kinds]


def _totals(
    members: NDArray[Any], by_unit: Mapping[Unit, NDArray[Any]], source: NDArray[Any], sources: int
) -> NDArray[np.float64]:
    """(units, sources) the summed sizes of the rows, each as often as it stands in `members`."""
    return np.stack([np.bincount(source[members], weights=by_unit[unit][members], minlength=sources) for unit in UNITS])


def _shares(stage: Stage, totals: NDArray[np.float64]) -> dict[str, dict[str, float]]:
    parts = totals / totals.sum(axis=1, keepdims=True)
    return {
        part.source: {unit: float(parts[row, column]) for row, unit in enumerate(UNITS)}
        for column, part in enumerate(stage.parts)
    }
