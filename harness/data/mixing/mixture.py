"""Which rows each epoch of a stage trains on, so that every source has the share of the mixture that was asked for.

Knows sizes of tokenised rows, nothing of templates or files. Shares are of what is trained: counted after truncation,
and packing leaves no row out. Rows are chosen by seeded hash, whatever the order of the file.
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

UNITS: tuple[ShareUnit, ...] = ("rows", "tokens", "loss_tokens")

Indices = NDArray[np.intp]


@dataclass(frozen=True)
class RowSelection:
    """Rows that an epoch takes: every row of the source `copies` times, and `rows` (indices) once more."""

    copies: int
    rows: Indices

    def counts_per_row(self, num_rows: int) -> NDArray[np.int64]:
        """(count,) how often each row of the source is taken."""
        return self.copies + np.bincount(self.rows, minlength=num_rows)


@dataclass(frozen=True)
class SourcePool:
    """The rows of a source as one epoch may take them.

    sizes: unit -> (N,) size of each row. order: (N,) the rows in the order in which they are taken.
    """

    sizes: Mapping[ShareUnit, NDArray[np.int32]]
    draw_order: Indices

    def total_size(self, unit: ShareUnit) -> int:
        """The size of all rows, each taken once."""
        return int(self.sizes[unit].sum(dtype=np.int64))

    def select_all(self) -> RowSelection:
        """Each row once."""
        return RowSelection(1, np.empty(0, dtype=np.intp))

    def select_near(self, unit: ShareUnit, target: float, tolerance: float, upsample: bool) -> RowSelection:
        """Rows whose size comes near `target`, see `subset_near_target`; at most everything once, unless `upsample`.

        With it every row is taken floor or ceil(target / total) times, as near as whole rows allow.
        """
        total = self.total_size(unit)
        copies = int(target // total)
        if copies and not upsample:
            return self.select_all()
        sizes = self.sizes[unit][self.draw_order]
        return RowSelection(
            copies,
            self.draw_order[subset_near_target(sizes, target - copies * total, tolerance, min_rows=0 if copies else 1)],
        )

    def selected_size(self, selection: RowSelection, unit: ShareUnit) -> int:
        """The size of a choice."""
        return selection.copies * self.total_size(unit) + int(self.sizes[unit][selection.rows].sum(dtype=np.int64))


def subset_near_target(sizes: NDArray[Any], target: float, tolerance: float = 0.0, min_rows: int = 1) -> Indices:
    """Indices of sizes whose sum is as near `target` as a plain search brings it, in order.

    Takes sizes from the front while they fit, then the one of the others that brings the sum nearest; while the sum
    is still more than `tolerance` off, exchanges one for one. sizes: (N,) integers from 1. At least `min_rows` (0 or 1)
    indices when target > 0 and there is any size.
    """
    if target <= 0 or not len(sizes):
        return np.empty(0, dtype=np.intp)
    upto = np.cumsum(sizes, dtype=np.int64)
    count = int(np.searchsorted(upto, target, side="right"))
    chosen = np.arange(count)
    gap = target - (int(upto[count - 1]) if count else 0)
    if count < len(sizes):
        best = int(np.argmin(np.abs(sizes[count:] - gap)))
        size = int(sizes[count + best])
        if count < min_rows or abs(gap - size) < gap:
            chosen, gap = np.append(chosen, count + best), gap - size
    if abs(gap) > tolerance and 0 < len(chosen) < len(sizes):
        chosen = _improve_by_swaps(sizes, chosen, gap, tolerance)
    return np.sort(chosen)


def _improve_by_swaps(sizes: NDArray[Any], chosen: Indices, gap: float, tolerance: float) -> Indices:
    """The choice with members exchanged for others, the best pair first, until no exchange narrows the gap."""
    free = np.ones(len(sizes), dtype=bool)
    free[chosen] = False
    others = np.flatnonzero(free)
    others = others[np.argsort(sizes[others], kind="stable")]
    chosen = chosen.copy()
    while abs(gap) > tolerance:
        there = sizes[others]
        wanted = sizes[chosen] + gap
        after = np.searchsorted(there, wanted)
        near = np.stack([np.maximum(after - 1, 0), np.minimum(after, len(others) - 1)])  # (2, members)
        left = np.abs(wanted - there[near])  # the gap that each exchange would leave
        side = np.argmin(left, axis=0)
        left = np.take_along_axis(left, side[None], axis=0)[0]
        out = len(left) - 1 - int(np.argmin(left[::-1]))  # of equals the one taken last, so that the first ones stay
        if left[out] >= abs(gap):
            break
        back, place = chosen[out], int(near[side[out], out])
        gap -= float(there[place] - sizes[back])
        chosen[out] = others[place]
        others = np.delete(others, place)
        others = np.insert(others, np.searchsorted(sizes[others], sizes[back]), back)
    return chosen


MAX_SHARE_ERROR = 0.005
"""How far a realised share may lie from the one asked for: half a percentage point of the mixture."""

MAX_SHARES_TRIED = 25
"""Amounts that are tried, each a tenth of a point lower, before none is said to be possible."""

MAX_BALANCING_ROUNDS = 20
"""How often the sources beside those that give every row are chosen anew, since their shares depend on one another."""


@dataclass(frozen=True)
class TargetShare:
    """What some sources, numbered as their stage's parts, are to be of its mixture. amount: in [0, 1] of the unit."""

    sources: tuple[int, ...]
    unit: ShareUnit
    amount: float


@dataclass(frozen=True)
class EpochDraw:
    """The rows of one epoch.

    rows: (M,) indices into the joined pools, part by part; a row may stand more than once. turns: (M,) how often the
    same row stands before.
    """

    rows: Indices
    repeat_indices: NDArray[np.int64]


class Mixture:
    """The draws of a stage's epochs, one after the other.

    A part in no share gives every row. Of a share's sources each gives as many rows as make its fraction of the whole;
    when every part has a share, the mixture is the largest that they allow: the scarcest source gives all its rows
    (of those that are not upsampled; when all are, the one that lasts longest does).

    Every epoch has the same rows, unless a share is resampled: then it takes first the rows that earlier epochs drew
    least often, in an order of its own (but for the few exchanged so that the share is met). A larger share keeps the
    rows of a smaller one, but for those as well.
    """

    def __init__(self, stage: Stage, pools: Mapping[str, TokenizedRows], seed: int) -> None:
        """pools: source -> its tokenised training rows. Raises HarnessError for parts and shares that do not fit."""
        raise_all(shares.validate_shares(stage))
        self.stage, self.seed, self.epoch = stage, seed, 0
        self.row_indices: dict[str, Indices] = {}
        self.row_sizes: dict[str, Mapping[ShareUnit, NDArray[np.int32]]] = {}
        self.row_ids: dict[str, NDArray[np.uint64]] = {}
        for part in stage.sources:
            pool = pools[part.source]
            if not len(pool):
                raise HarnessError(f"stage {stage.name}", f"{part.source!r} has no row to train on", "leave it out")
            kept = np.arange(len(pool))
            if part.limit is not None and part.limit < len(pool):
                # The stage is no part of the purpose: stages that keep some rows of a source keep the same ones.
                by_rank = np.argsort(hash_keys(pool.ids, seed, "part", part.source), kind="stable")
                kept = np.sort(by_rank[: part.limit])
            self.row_indices[part.source], self.row_ids[part.source] = kept, pool.ids[kept]
            tokens, trained = pool.lengths[kept], pool.loss_tokens[kept]
            ones = np.broadcast_to(np.int32(1), len(kept))
            self.row_sizes[part.source] = {"rows": ones, "tokens": tokens, "loss_tokens": trained}
        starts = np.cumsum([0, *(len(pools[part.source]) for part in stage.sources)])
        self.pool_offsets = {part.source: int(start) for part, start in zip(stage.sources, starts, strict=False)}
        self.draw_counts = {source: np.zeros(len(kept), dtype=np.int64) for source, kept in self.row_indices.items()}

    @property
    def is_resampled(self) -> bool:
        """Whether epochs differ in their rows."""
        return any(share.resample for share in self.stage.shares)

    def target_shares(self) -> tuple[TargetShare, ...]:
        """What is to be met: each share, and each of its sources by itself."""
        supplies = {source: SourcePool(sizes, np.empty(0, np.intp)) for source, sizes in self.row_sizes.items()}
        number = {part.source: index for index, part in enumerate(self.stage.sources)}
        each = _source_targets(self.stage.shares, supplies)
        together = [share for share in self.stage.shares if share.sources[1:]]
        return (
            *(TargetShare((number[one.source],), one.share.unit, one.amount) for one in each),
            *(TargetShare(tuple(number[source] for source in one.sources), one.unit, one.amount) for one in together),
        )

    def draw_epoch(self) -> EpochDraw:
        """The rows of the next epoch. Raises HarnessError when a share would be more than `MAX_SHARE_ERROR` off."""
        supplies = {part.source: self._source_pool(part.source) for part in self.stage.sources}
        chosen = _select_rows(self.stage.shares, supplies)
        raise_all(_share_errors(self.stage, supplies, chosen))
        rows, turns = [], []
        for source, choice in chosen.items():
            count = len(self.row_indices[source])
            self.draw_counts[source] += choice.counts_per_row(count)
            local = np.concatenate([np.tile(np.arange(count), choice.copies), choice.rows])
            rows.append(self.pool_offsets[source] + self.row_indices[source][local])
            turns.append(np.repeat(np.arange(choice.copies + 1), [*[count] * choice.copies, len(choice.rows)]))
        self.epoch += 1
        return EpochDraw(np.concatenate(rows), np.concatenate(turns))

    def _source_pool(self, source: str) -> SourcePool:
        share = shares.share_of_source(self.stage, source)
        if share is None:
            return SourcePool(self.row_sizes[source], np.arange(len(self.row_indices[source])))
        again = share.resample and self.epoch > 0
        purpose = (self.stage.name, source) + ((str(self.epoch),) if again else ())
        rank = hash_keys(self.row_ids[source], self.seed, "mixture", *purpose)
        order = np.lexsort((rank, self.draw_counts[source])) if again else np.argsort(rank, kind="stable")
        return SourcePool(self.row_sizes[source], order)


SourcePools = Mapping[str, SourcePool]
Selections = dict[str, RowSelection]


@dataclass(frozen=True)
class _SourceTarget:
    """One source's fraction of a share. amount: of the whole mixture. slack: that may be left, of the whole."""

    source: str
    amount: float
    share: Share
    tolerance: float

    def select_near(self, pool: SourcePool, total: float) -> RowSelection:
        return pool.select_near(self.share.unit, self.amount * total, self.tolerance * total, self.share.upsample)


def _source_targets(all_shares: tuple[Share, ...], pools: SourcePools) -> list[_SourceTarget]:
    wanted = []
    for share in all_shares:
        split = shares.split_share(share, [pools[source].total_size(share.unit) for source in share.sources])
        slack = 0.2 * MAX_SHARE_ERROR / len(share.sources)
        wanted += [
            _SourceTarget(s, share.amount * part, share, slack) for s, part in zip(share.sources, split, strict=True)
        ]
    return wanted


def _select_rows(all_shares: tuple[Share, ...], pools: SourcePools) -> Selections:
    """The choice of every source, in the order of the supplies."""
    wanted = _source_targets(all_shares, pools)
    named = {one.source for one in wanted}
    chosen = {source: supply.select_all() for source, supply in pools.items() if source not in named}
    chosen = _select_around_fixed(wanted, pools, chosen) if chosen else _select_largest_mixture(wanted, pools)
    return {source: chosen[source] for source in pools}


def _select_largest_mixture(targets: list[_SourceTarget], pools: SourcePools) -> Selections:
    wholes = [(one, pools[one.source].total_size(one.share.unit) / one.amount) for one in targets if one.amount]
    scarce = [whole for one, whole in wholes if not one.share.upsample]
    whole = min(scarce) if scarce else max(whole for _, whole in wholes)
    return {one.source: one.select_near(pools[one.source], whole) for one in targets}


def _select_around_fixed(targets: list[_SourceTarget], pools: SourcePools, fixed: Selections) -> Selections:
    """The choice beside sources that give every row. Shares depend on one another: it is made anew until it stays."""
    left = 1 - math.fsum(one.amount for one in targets)
    beside = {u: sum(pools[source].total_size(u) for source in fixed) for u in UNITS}
    chosen = fixed | {one.source: one.select_near(pools[one.source], beside[one.share.unit] / left) for one in targets}
    sizes = {s: {u: pools[s].selected_size(choice, u) for u in UNITS} for s, choice in chosen.items()}
    best, nearest = dict(chosen), _worst_fraction_error(targets, sizes)
    for _ in range(MAX_BALANCING_ROUNDS):
        before = {source: dict(size) for source, size in sizes.items()}
        for one in targets:
            unit = one.share.unit
            rest = sum(size[unit] for source, size in sizes.items() if source != one.source)
            chosen[one.source] = choice = one.select_near(pools[one.source], rest / (1 - one.amount))
            sizes[one.source] = {u: pools[one.source].selected_size(choice, u) for u in UNITS}
        if sizes == before:
            break
        if (worst := _worst_fraction_error(targets, sizes)) < nearest:
            best, nearest = dict(chosen), worst
    return best


def _worst_fraction_error(targets: list[_SourceTarget], sizes: Mapping[str, Mapping[ShareUnit, int]]) -> float:
    """The largest distance of a source from its fraction."""
    wholes = {u: sum(size[u] for size in sizes.values()) for u in UNITS}
    return max((abs(sizes[w.source][w.share.unit] / wholes[w.share.unit] - w.amount) for w in targets), default=0.0)


# -- what cannot be met -----------------------------------------------------------------------------------------------


def _unmet_shares(
    all_shares: tuple[Share, ...], pools: SourcePools, selections: Selections
) -> Iterator[tuple[Share, dict[str, float]]]:
    """The shares more than `MAX_SHARE_ERROR` off, together or in one source, each with what its sources realise."""
    for share in all_shares:
        whole = sum(pools[source].selected_size(choice, share.unit) for source, choice in selections.items())
        found = {s: pools[s].selected_size(selections[s], share.unit) / whole for s in share.sources}
        gaps = [math.fsum(found.values()) - share.amount]
        gaps += [found[one.source] - one.amount for one in _source_targets((share,), pools)]
        if max(map(abs, gaps)) > MAX_SHARE_ERROR + 1e-9:
            yield share, found


def _share_errors(stage: Stage, pools: SourcePools, selections: Selections) -> Iterator[HarnessError]:
    whole_sources = len({source for share in stage.shares for source in share.sources}) < len(pools)
    for share, found in _unmet_shares(stage.shares, pools, selections):
        where, unit = f"stage {stage.name}", share.unit.replace("_", " ")
        asked = f"{100 * share.amount:.1f} % of {shares.join_names(share.sources)}"
        wanted = {one.source: one.amount for one in _source_targets((share,), pools)}
        short = [s for s in found if _is_whole_source(selections[s]) and found[s] < wanted[s]]
        if short and whole_sources and not share.upsample:
            having = " and ".join(f"all {pools[s].total_size(share.unit)} {unit} of {s!r}" for s in short)
            most = _largest_possible_share(stage.shares, share, pools)
            possible = "no such share is possible" if most is None else f"at most {100 * most:.1f} % is possible"
            hint = "lower the share, add rows to it, let it repeat rows (upsample), or set a limit on the other sources"
            yield HarnessError(where, f"{asked} cannot be met: with {having} {possible}", hint)
        else:
            near = ", ".join(
                f"{100 * part:.1f} %" + (f" of {s!r}" if found.keys() - {s} else "") for s, part in found.items()
            )
            what = f"{asked} in {unit} cannot be met: whole rows come no nearer than {near}"
            yield HarnessError(where, what, "use more rows in the stage, or shorter ones, or ask for that share")


def _is_whole_source(selection: RowSelection) -> bool:
    return selection.copies == 1 and not len(selection.rows)


def _largest_possible_share(all_shares: tuple[Share, ...], share: Share, pools: SourcePools) -> float | None:
    """The largest amount of a share, in tenths of a point, that its sources' rows allow beside the other shares.

    Found from the sizes and then tried, since what is said to be possible must be possible. None: none was found.
    """
    others = tuple(other for other in all_shares if other is not share)
    named = {source for one in all_shares for source in one.sources}
    beside = sum(supply.total_size(share.unit) for source, supply in pools.items() if source not in named)
    left = 1 - math.fsum(other.amount for other in others)
    totals = [pools[source].total_size(share.unit) for source in share.sources]
    bound = min(
        total * left / (part * beside + total)
        for total, part in zip(totals, shares.split_share(share, totals), strict=True)
    )
    most = math.floor(1000 * min(bound, share.amount))
    for tenths in range(most, max(most - MAX_SHARES_TRIED, 0), -1):
        changed = (*others, replace(share, amount=tenths / 1000))
        if not any(True for _ in _unmet_shares(changed, pools, _select_rows(changed, pools))):
            return tenths / 1000
    return None
