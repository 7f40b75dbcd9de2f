"""Select the rows that each epoch of a stage trains on, so that every source has its requested share of the mixture.

Shares are of what is trained: sizes are counted after truncation, and packing drops no row. Rows are selected by a
seeded hash, independent of the order of the file.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness.data.row_hashing import hash_keys
from harness.data.tokenization.tokenized_rows import TokenizedRows
from harness.errors import HarnessError, raise_all
from harness.spec import shares
from harness.types import Share, ShareUnit, Stage
from harness.utils.formatting import join_names

UNITS: tuple[ShareUnit, ...] = ("rows", "tokens", "loss_tokens")

Indices = NDArray[np.intp]


@dataclass(frozen=True)
class RowSelection:
    """The rows of a source that an epoch takes.

    Attributes:
        copies: How often every row of the source is taken.
        rows: Indices of rows taken once more.
    """

    copies: int
    rows: Indices

    @property
    def is_complete(self) -> bool:
        """Whether every row is taken exactly once."""
        return self.copies == 1 and not len(self.rows)

    def counts_per_row(self, num_rows: int) -> NDArray[np.int64]:
        """Return how often each row of the source is taken, (num_rows,)."""
        return self.copies + np.bincount(self.rows, minlength=num_rows)


ALL_ROWS = RowSelection(1, np.empty(0, dtype=np.intp))
"""Each row of a source once."""


@dataclass(frozen=True)
class SourcePool:
    """The N rows of a source from which an epoch selects.

    Attributes:
        sizes: Unit -> (N,) size of each row.
        draw_order: (N,) the rows in the order in which they are taken.
    """

    sizes: Mapping[ShareUnit, NDArray[np.int32]]
    draw_order: Indices

    def total_size(self, unit: ShareUnit) -> int:
        """Return the size of all rows, each taken once."""
        return int(self.sizes[unit].sum(dtype=np.int64))

    def select_near(self, unit: ShareUnit, target: float, tolerance: float, upsample: bool) -> RowSelection:
        """Select rows whose total size is near `target`, see `subset_near_target`.

        Args:
            unit: The unit of the sizes.
            target: The requested total size.
            tolerance: Distance from the target that is accepted.
            upsample: Whether rows may repeat. Every row is then taken floor or ceil(target / total) times, as near as
                complete rows allow. Without it, at most every row is taken once.
        """
        total = self.total_size(unit)
        copies = int(target // total)
        if copies and not upsample:
            return ALL_ROWS
        sizes = self.sizes[unit][self.draw_order]
        extra = subset_near_target(sizes, target - copies * total, tolerance, min_rows=0 if copies else 1)
        return RowSelection(copies, self.draw_order[extra])

    def selected_size(self, selection: RowSelection, unit: ShareUnit) -> int:
        """Return the total size of a selection."""
        return selection.copies * self.total_size(unit) + int(self.sizes[unit][selection.rows].sum(dtype=np.int64))


def subset_near_target(sizes: NDArray[Any], target: float, tolerance: float = 0.0, min_rows: int = 1) -> Indices:
    """Select sizes whose sum is near a target by a greedy search with swaps.

    Takes sizes from the front while they fit, then the one of the others that brings the sum nearest. While the sum
    is more than `tolerance` off, swaps a selected size for another.

    Args:
        sizes: (N,) positive integers.
        target: The requested sum.
        tolerance: Distance from the target that is accepted.
        min_rows: Minimum number of sizes, 0 or 1, when the target is positive.

    Returns:
        The indices of the selected sizes, ascending.
    """
    if target <= 0 or not len(sizes):
        return np.empty(0, dtype=np.intp)
    cumulative = np.cumsum(sizes, dtype=np.int64)
    count = int(np.searchsorted(cumulative, target, side="right"))
    selected = np.arange(count)
    gap = target - (int(cumulative[count - 1]) if count else 0)
    if count < len(sizes):
        nearest = int(np.argmin(np.abs(sizes[count:] - gap)))
        size = int(sizes[count + nearest])
        if count < min_rows or abs(gap - size) < gap:
            selected, gap = np.append(selected, count + nearest), gap - size
    if abs(gap) > tolerance and 0 < len(selected) < len(sizes):
        selected = _improve_by_swaps(sizes, selected, gap, tolerance)
    return np.sort(selected)


def _improve_by_swaps(sizes: NDArray[Any], selected: Indices, gap: float, tolerance: float) -> Indices:
    """Swap selected sizes for others, the best pair first, until no swap narrows the gap."""
    is_free = np.ones(len(sizes), dtype=bool)
    is_free[selected] = False
    others = np.flatnonzero(is_free)
    others = others[np.argsort(sizes[others], kind="stable")]
    selected = selected.copy()
    while abs(gap) > tolerance:
        other_sizes = sizes[others]
        ideal = sizes[selected] + gap  # the size that would close the gap in place of each selected one
        after = np.searchsorted(other_sizes, ideal)
        neighbors = np.stack([np.maximum(after - 1, 0), np.minimum(after, len(others) - 1)])  # (2, selected)
        remaining = np.abs(ideal - other_sizes[neighbors])  # the gap that each swap would leave
        side = np.argmin(remaining, axis=0)
        remaining = np.take_along_axis(remaining, side[None], axis=0)[0]
        # Of equal swaps, the one that removes the row selected last, so that the first rows stay.
        out = len(remaining) - 1 - int(np.argmin(remaining[::-1]))
        if remaining[out] >= abs(gap):
            break
        removed, into = selected[out], int(neighbors[side[out], out])
        gap -= float(other_sizes[into] - sizes[removed])
        selected[out] = others[into]
        others = np.delete(others, into)
        others = np.insert(others, np.searchsorted(sizes[others], sizes[removed]), removed)
    return selected


MAX_SHARE_ERROR = 0.005
"""Maximum distance of a realized share from the requested one: half a percentage point of the mixture."""

MAX_SHARES_TRIED = 25
"""Amounts tried, each 0.1 percentage points lower, before the error says that no share is possible."""

MAX_BALANCING_ROUNDS = 20
"""Maximum number of rounds that select rows again, since the shares of sources depend on one another."""


@dataclass(frozen=True)
class TargetShare:
    """A requested share of some sources of a stage.

    Attributes:
        sources: Indices into `Stage.sources`.
        unit: The unit of the share.
        amount: The share of the mixture, in [0, 1] of the unit.
    """

    sources: tuple[int, ...]
    unit: ShareUnit
    amount: float


@dataclass(frozen=True)
class EpochDraw:
    """The M rows of one epoch.

    Attributes:
        rows: (M,) indices into the concatenated pools, source after source. A row may repeat.
        repeat_indices: (M,) how often the same row came before.
    """

    rows: Indices
    repeat_indices: NDArray[np.int64]


class Mixture:
    """Draws the rows of a stage's epochs, one epoch after the other.

    A source without a share gives every row. Each source of a share gives as many rows as make its fraction of the
    mixture. When every source has a share, the mixture is the largest that they allow: the scarcest source that is not
    upsampled gives all its rows. When all are upsampled, the mixture is large enough that every row is taken.

    Every epoch has the same rows, unless a share is resampled: then an epoch takes first the rows that earlier epochs
    drew least often, in its own random order. A larger share contains the rows of a smaller one. A few swaps, which
    make a share exact, may break both rules.
    """

    def __init__(self, stage: Stage, pools: Mapping[str, TokenizedRows], seed: int) -> None:
        """Apply the limits of sources.

        Args:
            stage: The stage.
            pools: Source -> its tokenized training rows.
            seed: The seed of the plan.

        Raises:
            HarnessError: For sources and shares that contradict one another, and for a source without a row.
        """
        raise_all(shares.validate_shares(stage))
        self.stage, self.seed, self.epoch = stage, seed, 0
        self.row_indices: dict[str, Indices] = {}
        self.row_sizes: dict[str, Mapping[ShareUnit, NDArray[np.int32]]] = {}
        self.row_ids: dict[str, NDArray[np.uint64]] = {}
        for stage_source in stage.sources:
            name, limit = stage_source.source, stage_source.limit
            pool = pools[name]
            if not len(pool):
                what = f"{name!r} has no row to train on"
                raise HarnessError(f"stage {stage.name}", what, "remove the source from the stage")
            indices = np.arange(len(pool))
            if limit is not None and limit < len(pool):
                # The stage is not part of the purpose: stages that limit a source keep the same rows.
                by_key = np.argsort(hash_keys(pool.ids, seed, "part", name), kind="stable")
                indices = np.sort(by_key[:limit])
            self.row_indices[name], self.row_ids[name] = indices, pool.ids[indices]
            self.row_sizes[name] = {
                "rows": np.broadcast_to(np.int32(1), len(indices)),
                "tokens": pool.lengths[indices],
                "loss_tokens": pool.loss_tokens[indices],
            }
        starts = np.cumsum([0, *(len(pools[part.source]) for part in stage.sources)])
        self.pool_offsets = {part.source: int(start) for part, start in zip(stage.sources, starts, strict=False)}
        self.draw_counts = {name: np.zeros(len(rows), dtype=np.int64) for name, rows in self.row_indices.items()}

    @property
    def is_resampled(self) -> bool:
        """Whether epochs differ in their rows."""
        return any(share.resample for share in self.stage.shares)

    def target_shares(self) -> tuple[TargetShare, ...]:
        """Return what the mixture must meet: the fraction of each source, then each share of several sources."""
        pools = {source: SourcePool(sizes, np.empty(0, np.intp)) for source, sizes in self.row_sizes.items()}
        index_of = {part.source: index for index, part in enumerate(self.stage.sources)}
        of_sources = _source_targets(self.stage.shares, pools)
        of_several = [share for share in self.stage.shares if len(share.sources) > 1]
        return (
            *(TargetShare((index_of[target.source],), target.share.unit, target.amount) for target in of_sources),
            *(TargetShare(tuple(index_of[s] for s in share.sources), share.unit, share.amount) for share in of_several),
        )

    def draw_epoch(self) -> EpochDraw:
        """Draw the rows of the next epoch.

        Raises:
            HarnessError: When a share would be more than `MAX_SHARE_ERROR` off.
        """
        pools = {part.source: self._source_pool(part.source) for part in self.stage.sources}
        selections = _select_rows(self.stage.shares, pools)
        raise_all(_share_errors(self.stage, pools, selections))
        rows, repeat_indices = [], []
        for source, selection in selections.items():
            count, copies = len(self.row_indices[source]), selection.copies
            self.draw_counts[source] += selection.counts_per_row(count)
            local = np.concatenate([np.tile(np.arange(count), copies), selection.rows])
            rows.append(self.pool_offsets[source] + self.row_indices[source][local])
            repeat_indices.append(np.repeat(np.arange(copies + 1), [*[count] * copies, len(selection.rows)]))
        self.epoch += 1
        return EpochDraw(np.concatenate(rows), np.concatenate(repeat_indices))

    def _source_pool(self, source: str) -> SourcePool:
        share = shares.share_of_source(self.stage, source)
        if share is None:
            return SourcePool(self.row_sizes[source], np.arange(len(self.row_indices[source])))
        is_new_draw = share.resample and self.epoch > 0
        purpose = (self.stage.name, source) + ((str(self.epoch),) if is_new_draw else ())
        keys = hash_keys(self.row_ids[source], self.seed, "mixture", *purpose)
        order = np.lexsort((keys, self.draw_counts[source])) if is_new_draw else np.argsort(keys, kind="stable")
        return SourcePool(self.row_sizes[source], order)


SourcePools = Mapping[str, SourcePool]
Selections = dict[str, RowSelection]


@dataclass(frozen=True)
class _SourceTarget:
    """The fraction of a share that one source must have.

    Attributes:
        source: The name of the source.
        amount: The fraction of the complete mixture.
        share: The share that names the source.
        tolerance: Accepted distance, as a fraction of the complete mixture.
    """

    source: str
    amount: float
    share: Share
    tolerance: float

    def select_near(self, pool: SourcePool, total: float) -> RowSelection:
        return pool.select_near(self.share.unit, self.amount * total, self.tolerance * total, self.share.upsample)


def _source_targets(all_shares: tuple[Share, ...], pools: SourcePools) -> list[_SourceTarget]:
    targets = []
    for share in all_shares:
        fractions = shares.split_share(share, [pools[source].total_size(share.unit) for source in share.sources])
        tolerance = 0.2 * MAX_SHARE_ERROR / len(share.sources)
        targets += [
            _SourceTarget(source, share.amount * fraction, share, tolerance)
            for source, fraction in zip(share.sources, fractions, strict=True)
        ]
    return targets


def _select_rows(all_shares: tuple[Share, ...], pools: SourcePools) -> Selections:
    """Return the selection of every source, in the order of the pools."""
    targets = _source_targets(all_shares, pools)
    sources_with_share = {target.source for target in targets}
    complete = {source: ALL_ROWS for source in pools if source not in sources_with_share}
    selections = _select_around_fixed(targets, pools, complete) if complete else _select_largest_mixture(targets, pools)
    return {source: selections[source] for source in pools}


def _select_largest_mixture(targets: list[_SourceTarget], pools: SourcePools) -> Selections:
    """Select rows when every source has a share."""
    totals = [
        (target, pools[target.source].total_size(target.share.unit) / target.amount)
        for target in targets
        if target.amount
    ]
    scarce = [total for target, total in totals if not target.share.upsample]
    mixture_size = min(scarce) if scarce else max(total for _, total in totals)
    return {target.source: target.select_near(pools[target.source], mixture_size) for target in targets}


def _select_around_fixed(targets: list[_SourceTarget], pools: SourcePools, fixed: Selections) -> Selections:
    """Select rows next to sources that give every row.

    The shares depend on one another, so rows are selected again until nothing changes.
    """
    fixed_fraction = 1 - math.fsum(target.amount for target in targets)
    fixed_size = {unit: sum(pools[source].total_size(unit) for source in fixed) for unit in UNITS}
    selections = fixed | {
        target.source: target.select_near(pools[target.source], fixed_size[target.share.unit] / fixed_fraction)
        for target in targets
    }
    sizes = {source: _selection_sizes(pools[source], selection) for source, selection in selections.items()}
    best, smallest_error = dict(selections), _worst_fraction_error(targets, sizes)
    for _ in range(MAX_BALANCING_ROUNDS):
        previous = dict(sizes)
        for target in targets:
            source, unit = target.source, target.share.unit
            size_of_others = sum(size[unit] for other, size in sizes.items() if other != source)
            selections[source] = target.select_near(pools[source], size_of_others / (1 - target.amount))
            sizes[source] = _selection_sizes(pools[source], selections[source])
        if sizes == previous:
            break
        if (error := _worst_fraction_error(targets, sizes)) < smallest_error:
            best, smallest_error = dict(selections), error
    return best


def _selection_sizes(pool: SourcePool, selection: RowSelection) -> Mapping[ShareUnit, int]:
    return {unit: pool.selected_size(selection, unit) for unit in UNITS}


def _worst_fraction_error(targets: list[_SourceTarget], sizes: Mapping[str, Mapping[ShareUnit, int]]) -> float:
    """Return the largest distance of a source from its fraction."""
    totals = {unit: sum(size[unit] for size in sizes.values()) for unit in UNITS}
    errors = (
        abs(sizes[target.source][target.share.unit] / totals[target.share.unit] - target.amount) for target in targets
    )
    return max(errors, default=0.0)


# -- shares that cannot be met ----------------------------------------------------------------------------------------


def _unmet_shares(
    all_shares: tuple[Share, ...], pools: SourcePools, selections: Selections
) -> Iterator[tuple[Share, dict[str, float]]]:
    """Yield the shares more than `MAX_SHARE_ERROR` off, in total or in one source, with each source's fraction."""
    for share in all_shares:
        total = sum(pools[source].selected_size(selection, share.unit) for source, selection in selections.items())
        realized = {
            source: pools[source].selected_size(selections[source], share.unit) / total for source in share.sources
        }
        gaps = [math.fsum(realized.values()) - share.amount]
        gaps += [realized[target.source] - target.amount for target in _source_targets((share,), pools)]
        if max(map(abs, gaps)) > MAX_SHARE_ERROR + 1e-9:
            yield share, realized


def _share_errors(stage: Stage, pools: SourcePools, selections: Selections) -> Iterator[HarnessError]:
    has_fixed_sources = len({source for share in stage.shares for source in share.sources}) < len(pools)
    for share, realized in _unmet_shares(stage.shares, pools, selections):
        where, unit = f"stage {stage.name}", share.unit.replace("_", " ")
        requested = f"{100 * share.amount:.1f} % of {join_names(share.sources, quote=True, last=' and ')}"
        amounts = {target.source: target.amount for target in _source_targets((share,), pools)}
        exhausted = [s for s in realized if selections[s].is_complete and realized[s] < amounts[s]]
        if exhausted and has_fixed_sources and not share.upsample:
            used = " and ".join(f"all {pools[s].total_size(share.unit)} {unit} of {s!r}" for s in exhausted)
            largest = _largest_possible_share(stage.shares, share, pools)
            possible = "no such share is possible" if largest is None else f"at most {100 * largest:.1f} % is possible"
            hint = "lower the share, add rows to it, let it repeat rows (upsample), or set a limit on the other sources"
            yield HarnessError(where, f"{requested} cannot be met: with {used} {possible}", hint)
        else:
            nearest = ", ".join(
                f"{100 * fraction:.1f} %" + (f" of {source!r}" if len(realized) > 1 else "")
                for source, fraction in realized.items()
            )
            what = f"{requested} in {unit} cannot be met: the nearest share that complete rows allow is {nearest}"
            yield HarnessError(where, what, "use more rows in the stage, or shorter rows, or request that share")


def _largest_possible_share(all_shares: tuple[Share, ...], share: Share, pools: SourcePools) -> float | None:
    """Return the largest amount of a share, in steps of 0.001, that its sources allow next to the other shares.

    It is computed from the sizes and then tried, since an amount that the error names must be possible.

    Returns:
        The amount; None when no amount that was tried is possible.
    """
    others = tuple(other for other in all_shares if other is not share)
    sources_with_share = {source for any_share in all_shares for source in any_share.sources}
    fixed_size = sum(pool.total_size(share.unit) for source, pool in pools.items() if source not in sources_with_share)
    available = 1 - math.fsum(other.amount for other in others)
    totals = [pools[source].total_size(share.unit) for source in share.sources]
    bound = min(
        total * available / (fraction * fixed_size + total)
        for total, fraction in zip(totals, shares.split_share(share, totals), strict=True)
    )
    largest = math.floor(1000 * min(bound, share.amount))
    for thousandths in range(largest, max(largest - MAX_SHARES_TRIED, 0), -1):
        candidate = (*others, replace(share, amount=thousandths / 1000))
        if not any(True for _ in _unmet_shares(candidate, pools, _select_rows(candidate, pools))):
            return thousandths / 1000
    return None
