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
from harness.data.mixing.mixture import MAX_SHARE_ERROR, UNITS, EpochDraw, Mixture, TargetShare
from harness.data.mixing.packing import PackedSequences, pack_rows
from harness.data.mixing.partial_epochs import ShareUnreachable
from harness.data.row_hashing import shuffled_indices
from harness.data.tokenization.tokenized_rows import TokenizedRows
from harness.errors import HarnessError
from harness.types import ShareUnit, Stage, StageDataset, TokenizedExample


def build_stage_dataset(
    stage: Stage, pools: Mapping[str, TokenizedRows], seed: int, processes: int = 1
) -> StageDataset:
    """The rows of a stage and their order, as its parts, shares and `train` say; the same for the same seed.

    pools: source -> its tokenised training rows, cut to `max_length`, for every part of the stage. Every epoch has the
    rows that `Mixture` draws, spread evenly (`batch_order.max_gap_without_source` is the bound on slots without one).
    `steps` sets the number of slots exactly; a fraction of an epoch is rounded to whole slots, one in all at least,
    and holds every source in proportion, and every share as it was asked for (see `partial_epochs`). Batches are cut
    from the whole order, across the ends of epochs. processes: that share the training; an update takes batches of
    each.
    Raises HarnessError when a share would lie more than half a point of the mixture from the one asked for, in an epoch
    or, of a stage that ends within one, in all that it trains; the error says what is possible.
    """
    try:
        return _build_dataset(stage, pools, seed, processes)
    except ShareUnreachable as error:
        raise error.to_error(lambda other: _is_feasible(other, pools, seed, processes)) from None


def _is_feasible(stage: Stage, pools: Mapping[str, TokenizedRows], seed: int, processes: int) -> bool:
    try:
        _build_dataset(stage, pools, seed, processes)
    except (ShareUnreachable, HarnessError):
        return False
    return True


def _build_dataset(stage: Stage, pools: Mapping[str, TokenizedRows], seed: int, processes: int) -> StageDataset:
    train = stage.train
    mixture = Mixture(stage, pools, seed)
    rows = TokenizedRows.concatenate([pools[part.source] for part in stage.sources])
    source = np.repeat(np.arange(len(stage.sources)), [len(pools[part.source]) for part in stage.sources])
    by_unit: dict[ShareUnit, NDArray[Any]] = {"tokens": rows.lengths, "loss_tokens": rows.loss_tokens}
    by_unit["rows"] = np.broadcast_to(np.int32(1), len(rows))
    update = train["batch_size"] * train["accumulation"] * processes
    total = None if train["steps"] is None else train["steps"] * update
    used = np.zeros(len(rows), dtype=bool)
    walked: list[PackedSequences] = []
    ends: list[int] = []
    begun = 0
    while begun < total if total is not None else len(ends) < train["epochs"]:
        if not ends or mixture.is_resampled:
            epoch = _EpochLayout(mixture.draw_epoch(), rows.lengths, source, stage, seed, len(ends))
        whole = len(epoch.sequences)
        left = floor((train["epochs"] - len(ends)) * whole + 0.5) if total is None else total - begun
        count = min(whole, max(left, 0 if ends else 1))
        if not count:
            break
        taken = None
        if count < whole and stage.shares:
            taken = _select_partial_epoch(epoch, count, len(ends), mixture.target_shares(), by_unit, source, walked)
        walked.append(epoch.build_order(count, begun, len(ends), taken))
        used[walked[-1].row_indices] = True
        ends.append(begun + whole)
        begun += count
    names = np.cumsum(used) - 1
    slots = PackedSequences.concatenate(walked).remap(names)
    kept = np.flatnonzero(used)
    counted = [_total_sizes(one.row_indices, by_unit, source, len(stage.sources)) for one in walked]
    return StageDataset(
        stage=stage,
        rows=rows.select(kept),
        order=slots,
        epoch_ends=tuple(ends),
        shares=_realized_shares(stage, sum(counted[1:], counted[0])),
        efficiency=batch_order.padding_efficiency(slots.sum_sizes(rows.lengths[kept]), train["batch_size"]),
        epoch_shares=tuple(_realized_shares(stage, one) for one in counted),
    )


def _select_partial_epoch(
    epoch: _EpochLayout,
    count: int,
    epoch_index: int,
    targets: Sequence[TargetShare],
    sizes_by_unit: Mapping[ShareUnit, NDArray[Any]],
    row_sources: NDArray[Any],
    earlier_sequences: Sequence[PackedSequences],
) -> NDArray[np.bool_]:
    """(N,) the slots that are trained of an epoch of which only `count` are, by which every share is met.

    In these slots alone where that can be had, else in all that the stage trains. Raises Missed where in neither.
    """
    sizes = partial_epochs.target_sizes(epoch.sequences, targets, sizes_by_unit, row_sources)
    wanted = np.array([aim.amount for aim in targets])
    nothing = np.zeros((2, len(targets)), np.int64)
    before = sum(
        (
            partial_epochs.target_sizes(one, targets, sizes_by_unit, row_sources).sum(axis=2)
            for one in earlier_sequences
        ),
        nothing,
    )
    inside = np.zeros(len(epoch.sequences), bool)
    inside[epoch.interleave(epoch_index)[:count]] = True
    turns = np.zeros(len(inside), np.int64) if epoch.repeat_indices is None else epoch.repeat_indices
    for beside in (nothing, before):
        cut = partial_epochs.PartialEpoch(sizes, wanted, epoch.source_ids, turns, beside)
        inside = partial_epochs.rebalance_by_swaps(inside, cut)
        if cut.worst_share_error(inside) <= MAX_SHARE_ERROR + 1e-9:
            return inside
    slots = count + sum(map(len, earlier_sequences))
    raise ShareUnreachable(epoch.stage, targets, partial_epochs.realized_shares(cut.total_sizes(inside)), slots)


def sizes_by_source(rows: Sequence[TokenizedExample]) -> dict[str, dict[str, int]]:
    """Source -> its rows, their tokens and loss tokens, each row counted once. Sources without a row are left out."""
    counted = rows if isinstance(rows, TokenizedRows) else TokenizedRows.from_rows(rows)
    found: dict[str, dict[str, int]] = {}
    for number, name in enumerate(counted.source_names):
        mine = counted.source_indices == number
        if mine.any():
            tokens, trained = (int(of[mine].sum(dtype=np.int64)) for of in (counted.lengths, counted.loss_tokens))
            found[name] = {"rows": int(mine.sum()), "tokens": tokens, "loss_tokens": trained}
    return found


class _EpochLayout:
    """The rows of an epoch in slots, and what is needed to put them in order.

    lengths, source: of the joined pools, tokens of each row and the part that it belongs to.
    """

    def __init__(
        self,
        draw: EpochDraw,
        lengths: NDArray[Any],
        row_sources: NDArray[Any],
        stage: Stage,
        seed: int,
        epoch_index: int,
    ) -> None:
        self.draw, self.stage, self.seed = draw, stage, seed
        self.packed: bool = stage.train["packing"]
        self.repeat_indices: NDArray[Any] | None = draw.repeat_indices
        if self.packed:
            # Rows of one length are packed in the order given: shuffled, so that no source comes before another.
            rows = draw.rows[shuffled_indices(len(draw.rows), seed, "pack", stage.name, epoch_index)]
            self.sequences, self.repeat_indices = pack_rows(lengths[rows], stage.train["max_length"]).remap(rows), None
        else:
            self.sequences = PackedSequences.one_row_each(draw.rows)
        self.sequence_lengths = self.sequences.sum_sizes(lengths)
        self.source_ids = _rarest_source_ids(
            self.sequences, row_sources, np.bincount(row_sources[draw.rows], minlength=len(stage.sources))
        )

    def interleave(self, epoch_index: int, sequence_indices: NDArray[Any] | None = None) -> NDArray[np.intp]:
        """The slots, or some of them, in an even order. number: of the epoch, from 0."""
        every = np.arange(len(self.sequences)) if sequence_indices is None else sequence_indices
        turns = None if self.repeat_indices is None else self.repeat_indices[every]
        return every[
            batch_order.interleave_sources(
                self.source_ids[every], self.seed, "order", self.stage.name, epoch_index, repeat_indices=turns
            )
        ]

    def build_order(
        self, count: int, first_position: int, epoch_index: int, selected: NDArray[np.bool_] | None = None
    ) -> PackedSequences:
        """The first `count` slots of the epoch in its order, or those `inside`. begun: slots before it."""
        purpose = ("order", self.stage.name, epoch_index)
        # Cut before lengths are grouped: the beginning of an even spread holds every source in its share.
        spread = self.interleave(epoch_index)[:count]
        if selected is not None and not selected[spread].all():
            spread = self.interleave(epoch_index, np.flatnonzero(selected))
        batch = self.stage.train["batch_size"]
        if self.packed:
            return self.sequences.select(
                batch_order.group_by_length_within_source(
                    spread, self.source_ids, self.sequence_lengths, batch, first_position, self.seed, *purpose
                )
            )
        return self.sequences.select(
            batch_order.group_by_length(spread, self.sequence_lengths, batch, first_position, self.seed, *purpose)
        )


def _rarest_source_ids(
    sequences: PackedSequences, row_sources: NDArray[Any], rows_per_source: NDArray[Any]
) -> NDArray[np.int64]:
    """The kind of each slot: the part, of those of its rows, that has the fewest rows in the epoch."""
    by_count = np.argsort(rows_per_source, kind="stable")
    rarity = np.empty(len(rows_per_source), dtype=np.int64)
    rarity[by_count] = np.arange(len(rows_per_source))
    kinds = np.minimum.reduceat(rarity[row_sources[sequences.row_indices]], sequences.starts[:-1])
    there = np.bincount(kinds, minlength=len(rows_per_source)) > 0
    return (np.cumsum(there) - 1)[kinds]


def _total_sizes(
    row_indices: NDArray[Any],
    sizes_by_unit: Mapping[ShareUnit, NDArray[Any]],
    row_sources: NDArray[Any],
    num_sources: int,
) -> NDArray[np.float64]:
    """(units, sources) the summed sizes of the rows, each as often as it stands in `row_indices`."""
    return np.stack(
        [
            np.bincount(row_sources[row_indices], weights=sizes_by_unit[unit][row_indices], minlength=num_sources)
            for unit in UNITS
        ]
    )


def _realized_shares(stage: Stage, total_sizes: NDArray[np.float64]) -> dict[str, dict[str, float]]:
    parts = total_sizes / total_sizes.sum(axis=1, keepdims=True)
    return {
        part.source: {unit: float(parts[row, column]) for row, unit in enumerate(UNITS)}
        for column, part in enumerate(stage.sources)
    }
