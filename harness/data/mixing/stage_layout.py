r"""Build the dataset of a stage: from the tokenized rows of its sources to the packed sequences in training order.

::

    pools of sources -> draw rows -> pack -> interleave sources -> cut at the stage's end -> group by length -> order
                        \______________________________ for each epoch ______________________________/

Only sequences of padded batches are grouped by length.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import floor
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness.data.mixing import batch_order, partial_epochs
from harness.data.mixing.mixture import MAX_SHARE_ERROR, UNITS, EpochDraw, Mixture, TargetShare
from harness.data.mixing.packing import PackedSequences, pack_rows
from harness.data.mixing.partial_epochs import PartialEpoch, ShareUnreachable
from harness.data.row_hashing import shuffled_indices
from harness.data.tokenization.tokenized_rows import TokenizedRows
from harness.errors import HarnessError
from harness.types import ShareUnit, Stage, StageDataset, TokenizedExample


def build_stage_dataset(
    stage: Stage,
    pools: Mapping[str, TokenizedRows],
    seed: int,
    processes: int = 1,
    longest_unpadded_row: int = 0,
    order_keys: Mapping[str, NDArray[Any]] | None = None,
) -> StageDataset:
    """Build the rows of a stage and their training order; the same for the same seed.

    Every epoch has the rows that `Mixture` draws, spread evenly, see `batch_order`. `steps` sets the number of
    sequences exactly. A fraction of an epoch is rounded to complete sequences, at least one in total, and contains
    every source in proportion and every share as requested, see `partial_epochs`. Batches are cut from the complete
    order, across the ends of epochs.

    Args:
        stage: The stage, with its sources, shares and `train` settings.
        pools: Source -> its tokenized training rows, truncated to `max_length`, for every source of the stage.
        seed: The seed of the plan.
        processes: Number of training processes. A step takes batches of each.
        longest_unpadded_row: Tokens of the longest row with which the model needs no padding. If all rows are at most
            this long, batches are not grouped by length.
        order_keys: Source -> the key of each of its rows; those with lower keys come first within the source. Batches
            are then not grouped by length.

    Raises:
        HarnessError: When a share would be more than `MAX_SHARE_ERROR` off in an epoch, or, in a stage that ends within
            an epoch, in everything that it trains. The error says what is possible.
    """
    rows = _StageRows.concatenate(stage, pools, longest_unpadded_row, order_keys or {})
    try:
        epochs = list(_schedule_epochs(stage, pools, rows, seed, processes))
    except ShareUnreachable as error:
        raise error.to_error(lambda other: _is_feasible(other, pools, rows, seed, processes)) from None
    order = PackedSequences.concatenate([epoch.order for epoch in epochs])
    is_used = np.zeros(len(rows.rows), dtype=bool)
    is_used[order.row_indices] = True
    used_rows = rows.rows.select(np.flatnonzero(is_used))
    order = order.remap(np.cumsum(is_used) - 1)  # indices into the used rows
    sizes = [rows.sum_by_source(epoch.order.row_indices) for epoch in epochs]
    efficiency = 1.0
    if rows.is_padded:
        efficiency = batch_order.padding_efficiency(order.sum_sizes(used_rows.lengths), stage.train["batch_size"])
    return StageDataset(
        stage=stage,
        rows=used_rows,
        order=order,
        epoch_ends=tuple(epoch.end for epoch in epochs),
        shares=_realized_shares(stage, sum(sizes[1:], sizes[0])),
        efficiency=efficiency,
        epoch_shares=tuple(_realized_shares(stage, epoch_sizes) for epoch_sizes in sizes),
        is_padded=rows.is_padded,
    )


@dataclass(frozen=True)
class _StageRows:
    """The R rows of all sources of a stage, source after source.

    Attributes:
        rows: The rows.
        source_ids: (R,) the source of each row, an index into `Stage.sources`.
        sizes: Unit -> (R,) size of each row.
        num_sources: Number of sources of the stage.
        is_padded: Whether batches are padded.
        keys: (R,) the key of each row in its source; None if no source has any.
    """

    rows: TokenizedRows
    source_ids: NDArray[Any]
    sizes: Mapping[ShareUnit, NDArray[Any]]
    num_sources: int
    is_padded: bool
    keys: NDArray[Any] | None

    @property
    def is_grouped(self) -> bool:
        """Whether batches hold sequences of similar length, since they are padded."""
        return self.is_padded and self.keys is None

    @classmethod
    def concatenate(
        cls,
        stage: Stage,
        pools: Mapping[str, TokenizedRows],
        longest_unpadded_row: int,
        order_keys: Mapping[str, NDArray[Any]],
    ) -> _StageRows:
        stage_pools = [pools[part.source] for part in stage.sources]
        rows = TokenizedRows.concatenate(stage_pools)
        source_ids = np.repeat(np.arange(len(stage_pools)), [len(pool) for pool in stage_pools])
        ones = np.broadcast_to(np.int32(1), len(rows))
        sizes: dict[ShareUnit, NDArray[Any]] = {
            "rows": ones,
            "tokens": rows.lengths,
            "loss_tokens": rows.loss_tokens,
        }
        is_padded = bool(rows.lengths.max(initial=0) > longest_unpadded_row)
        keys = [order_keys.get(part.source, np.zeros(len(pools[part.source]))) for part in stage.sources]
        return cls(rows, source_ids, sizes, len(stage_pools), is_padded, np.concatenate(keys) if order_keys else None)

    def sum_by_source(self, row_indices: NDArray[Any]) -> NDArray[np.float64]:
        """Return the sizes of rows, each as often as it is in `row_indices`: (units, sources)."""
        sources = self.source_ids[row_indices]
        return np.stack(
            [np.bincount(sources, self.sizes[unit][row_indices], minlength=self.num_sources) for unit in UNITS]
        )


@dataclass(frozen=True)
class _ScheduledEpoch:
    """What a stage trains of an epoch, in order. end: where the complete epoch would end in the stage's order."""

    order: PackedSequences
    end: int


def _schedule_epochs(
    stage: Stage, pools: Mapping[str, TokenizedRows], rows: _StageRows, seed: int, processes: int
) -> Iterator[_ScheduledEpoch]:
    """Yield the epochs of a stage, the last one possibly partial.

    Raises:
        HarnessError: For shares that an epoch cannot meet.
        ShareUnreachable: For a share that the sequences of a partial epoch cannot meet.
    """
    train = stage.train
    mixture = Mixture(stage, pools, seed)
    sequences_per_step = train["batch_size"] * train["accumulation"] * processes
    num_wanted = None if train["steps"] is None else train["steps"] * sequences_per_step
    num_scheduled = epoch_index = 0
    earlier: list[PackedSequences] = []
    while num_scheduled < num_wanted if num_wanted is not None else epoch_index < train["epochs"]:
        if epoch_index == 0 or mixture.is_resampled:
            epoch = _EpochSequences(mixture.draw_epoch(), rows, stage, seed, epoch_index)
        num_sequences = len(epoch.sequences)
        if num_wanted is not None:
            num_left = num_wanted - num_scheduled
        else:
            num_left = floor((train["epochs"] - epoch_index) * num_sequences + 0.5)
        count = min(num_sequences, max(num_left, 1 if epoch_index == 0 else 0))
        if not count:
            break
        selected = None
        if count < num_sequences and stage.shares:
            selected = _select_partial_epoch(epoch, count, epoch_index, mixture.target_shares(), rows, earlier)
        order = epoch.build_order(count, num_scheduled, epoch_index, selected)
        yield _ScheduledEpoch(order, num_scheduled + num_sequences)
        earlier.append(order)
        num_scheduled += count
        epoch_index += 1


def _is_feasible(stage: Stage, pools: Mapping[str, TokenizedRows], rows: _StageRows, seed: int, processes: int) -> bool:
    """Return whether the shares of a stage are met. rows: of its sources."""
    try:
        for _ in _schedule_epochs(stage, pools, rows, seed, processes):
            pass
    except (ShareUnreachable, HarnessError):
        return False
    return True


class _EpochSequences:
    """The rows of an epoch, packed into sequences, and what their order depends on."""

    def __init__(self, draw: EpochDraw, rows: _StageRows, stage: Stage, seed: int, epoch_index: int) -> None:
        self.stage, self.seed = stage, seed
        self.packed: bool = stage.train["packing"]
        self.is_grouped = rows.is_grouped
        lengths = rows.rows.lengths
        if self.packed:
            # Rows of equal length are packed in the given order: shuffled, so that no source comes before another.
            shuffled = draw.rows[shuffled_indices(len(draw.rows), seed, "pack", stage.name, epoch_index)]
            self.sequences = pack_rows(lengths[shuffled], stage.train["max_length"]).remap(shuffled)
            self.repeat_indices = np.zeros(len(self.sequences), np.int64)
        else:
            self.sequences = PackedSequences.one_row_each(draw.rows)
            self.repeat_indices = draw.repeat_indices
        self.sequence_lengths = self.sequences.sum_sizes(lengths)
        self.keys = None if rows.keys is None else rows.keys[self.sequences.row_indices]  # one row a sequence
        rows_per_source = np.bincount(rows.source_ids[draw.rows], minlength=rows.num_sources)
        self.source_ids = _rarest_source_ids(self.sequences, rows.source_ids, rows_per_source)

    def interleave(self, epoch_index: int, sequence_indices: NDArray[Any] | None = None) -> NDArray[np.intp]:
        """Return all sequences, or some of them, in an even order of their sources."""
        indices = np.arange(len(self.sequences)) if sequence_indices is None else sequence_indices
        order = batch_order.interleave_sources(
            self.source_ids[indices],
            self.seed,
            "order",
            self.stage.name,
            epoch_index,
            repeat_indices=self.repeat_indices[indices],
            keys=None if self.keys is None else self.keys[indices],
        )
        return indices[order]

    def build_order(
        self, count: int, first_position: int, epoch_index: int, selected: NDArray[np.bool_] | None = None
    ) -> PackedSequences:
        """Return the first `count` sequences of the epoch in training order, or the selected ones.

        Args:
            count: Number of sequences.
            first_position: Number of sequences before the epoch in the stage's order.
            epoch_index: Index of the epoch, from 0.
            selected: (N,) the sequences to train; None: the first ones.
        """
        # Cut before grouping by length: the beginning of an even order contains every source in its share.
        interleaved = self.interleave(epoch_index)[:count]
        if selected is not None and not selected[interleaved].all():
            interleaved = self.interleave(epoch_index, np.flatnonzero(selected))
        if not self.is_grouped:
            return self.sequences.select(interleaved)
        grouped = batch_order.group_by_length(
            interleaved,
            self.sequence_lengths,
            self.stage.train["batch_size"],
            first_position,
            self.seed,
            "order",
            self.stage.name,
            epoch_index,
            within=self.source_ids if self.packed else None,
        )
        return self.sequences.select(grouped)


def _select_partial_epoch(
    epoch: _EpochSequences,
    count: int,
    epoch_index: int,
    targets: Sequence[TargetShare],
    rows: _StageRows,
    earlier: Sequence[PackedSequences],
) -> NDArray[np.bool_]:
    """Select the sequences to train of an epoch of which the stage trains only `count`, so that every share is met.

    The shares are met in these sequences alone where that is possible, else in everything that the stage trains.

    Returns:
        (N,) which sequences are trained.

    Raises:
        ShareUnreachable: When the shares are met in neither.
    """
    sizes = partial_epochs.target_sizes(epoch.sequences, targets, rows.sizes, rows.source_ids)  # (2, K, N)
    target_fractions = np.array([target.amount for target in targets])
    nothing = np.zeros((2, len(targets)), np.int64)
    size_before = nothing.copy()
    for order in earlier:
        size_before += partial_epochs.target_sizes(order, targets, rows.sizes, rows.source_ids).sum(axis=2)
    selected = np.zeros(len(epoch.sequences), bool)
    selected[epoch.interleave(epoch_index)[:count]] = True
    for counted_before in (nothing, size_before):
        partial = PartialEpoch(sizes, target_fractions, epoch.source_ids, epoch.repeat_indices, counted_before)
        selected = partial_epochs.rebalance_by_swaps(selected, partial)
        if partial.worst_share_error(selected) <= MAX_SHARE_ERROR + 1e-9:
            return selected
    realized = partial_epochs.realized_shares(partial.total_sizes(selected))
    raise ShareUnreachable(epoch.stage, targets, realized, count + sum(map(len, earlier)))


def _rarest_source_ids(
    sequences: PackedSequences, row_sources: NDArray[Any], rows_per_source: NDArray[Any]
) -> NDArray[np.int64]:
    """Return the source by which each sequence is spread: of its rows' sources, the one with the fewest rows.

    The ids are numbered from 0, the rarest source first, without gaps.
    """
    by_count = np.argsort(rows_per_source, kind="stable")
    rarity = np.empty(len(rows_per_source), dtype=np.int64)
    rarity[by_count] = np.arange(len(rows_per_source))
    rarest = np.minimum.reduceat(rarity[row_sources[sequences.row_indices]], sequences.starts[:-1])
    is_present = np.bincount(rarest, minlength=len(rows_per_source)) > 0
    return (np.cumsum(is_present) - 1)[rarest]


def _realized_shares(stage: Stage, sizes: NDArray[np.float64]) -> dict[str, dict[str, float]]:
    """Return source -> unit -> its share. sizes: (units, sources)."""
    fractions = sizes / sizes.sum(axis=1, keepdims=True)
    return {
        part.source: {unit: float(fractions[row, column]) for row, unit in enumerate(UNITS)}
        for column, part in enumerate(stage.sources)
    }


def sizes_by_source(rows: Sequence[TokenizedExample]) -> dict[str, dict[str, int]]:
    """Count rows, tokens and loss tokens by source, each row once. Sources without a row are left out."""
    tokenized_rows = rows if isinstance(rows, TokenizedRows) else TokenizedRows.from_rows(rows)
    sizes: dict[str, dict[str, int]] = {}
    for index, name in enumerate(tokenized_rows.source_names):
        is_of_source = tokenized_rows.source_indices == index
        if is_of_source.any():
            sizes[name] = {
                "rows": int(is_of_source.sum()),
                "tokens": int(tokenized_rows.lengths[is_of_source].sum(dtype=np.int64)),
                "loss_tokens": int(tokenized_rows.loss_tokens[is_of_source].sum(dtype=np.int64)),
            }
    return sizes
