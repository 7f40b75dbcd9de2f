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

from harness.data.row_hashing import ranks
from harness.data.tokenization.tokenized_rows import Rows
from harness.errors import HarnessError, raise_all
from harness.spec import shares
from harness.types import Share, Stage, Unit

UNITS: tuple[Unit, ...] = ("rows", "tokens", "loss_tokens")

Indices = NDArray[np.intp]


@dataclass(frozen=True)
class Choice:
    """Rows that an epoch takes: every row of the source `copies` times, and `rows` (indices) once more."""

    copies: int
    rows: Indices

    def times(self, count: int) -> NDArray[np.int64]:
        """(count,) how often each row of the source is taken."""
        return self.copies + np.bincount(self.rows, minlength=count)


@dataclass(frozen=True)
class Supply:
    """The rows of a source as one epoch may take them.

    sizes: unit -> (N,) size of each row. order: (N,) the rows in the order in which they are taken.
    """

    sizes: Mapping[Unit, NDArray[np.int32]]
    order: Indices

    def total(self, unit: Unit) -> int:
        """The size of all rows, each taken once."""
        return int(self.sizes[unit].sum(dtype=np.int64))

    def everything(self) -> Choice:
        """Each row once."""
        return Choice(1, np.empty(0, dtype=np.intp))

    def near(self, unit: Unit, target: float, slack: float, upsample: bool) -> Choice:
        """Rows whose size comes near `target`, see `nearest`; at most everything once, unless `upsample`.

        With it every row is taken floor or ceil(target / total) times, as near as whole rows allow.
        """
        total = self.total(unit)
        copies = int(target // total)
        if copies and not upsample:
            return self.everything()
        sizes = self.sizes[unit][self.order]
        return Choice(copies, self.order[nearest(sizes, target - copies * total, slack, least=0 if copies else 1)])

    def taken(self, choice: Choice, unit: Unit) -> int:
        """The size of a choice."""
        return choice.copies * self.total(unit) + int(self.sizes[unit][choice.rows].sum(dtype=np.int64))


def nearest(sizes: NDArray[Any], target: float, slack: float = 0.0, least: int = 1) -> Indices:
    """Indices of sizes whose sum is as near `target` as a plain search brings it, in order.

    Takes sizes from the front while they fit, then the one of the others that brings the sum nearest; while the sum
    is still more than `slack` off, exchanges one for one. sizes: (N,) integers from 1. At least `least` (0 or 1)
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
        if count < least or abs(gap - size) < gap:
            chosen, gap = np.append(chosen, count + best), gap - size
    if abs(gap) > slack and 0 < len(chosen) < len(sizes):
        chosen = _exchanged(sizes, chosen, gap, slack)
    return np.sort(chosen)


def _exchanged(sizes: NDArray[Any], chosen: Indices, gap: float, slack: float) -> Indices:
    """The choice with members exchanged for others, the best pair first, until no exchange narrows the gap."""
    free = np.ones(len(sizes), dtype=bool)
    free[chosen] = False
    others = np.flatnonzero(free)
    others = others[np.argsort(sizes[others], kind="stable")]
    chosen = chosen.copy()
    while abs(gap) > slack:
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


TOLERANCE = 0.005
"""How far a realised share may lie from the one asked for: half a percentage point of the mixture."""

TRIED = 25
"""Amounts that are tried, each a tenth of a point lower, before none is said to be possible."""

ROUNDS = 20
"""How often the sources beside those that give every row are chosen anew, since their shares depend on one another."""


@dataclass(frozen=True)
class Aim:
    """What some sources, numbered as their stage's parts, are to be of its mixture. amount: in [0, 1] of the unit."""

    sources: tuple[int, ...]
    unit: Unit
    amount: float


@dataclass(frozen=True)
class Drawn:
    """The rows of one epoch.

    rows: (M,) indices into the joined pools, part by part; a row may stand more than once. turns: (M,) how often the
    same row stands before.
    """

    rows: Indices
    turns: NDArray[np.int64]


class Mixture:
    """The draws of a stage's epochs, one after the other.

    A part in no share gives every row. Of a share's sources each gives as many rows as make its fraction of the whole;
    when every part has a share, the mixture is the largest that they allow: the scarcest source gives all its rows
    (of those that are not upsampled; when all are, the one that lasts longest does).

    Every epoch has the same rows, unless a share is resampled: then it takes first the rows that earlier epochs drew
    least often, in an order of its own (but for the few exchanged so that the share is met). A larger share keeps the
    rows of a smaller one, but for those as well.
    """

    def __init__(self, stage: Stage, pools: Mapping[str, Rows], seed: int) -> None:
        """pools: source -> its tokenised training rows. Raises HarnessError for parts and shares that do not fit."""
        raise_all(shares.check(stage))
        self.stage, self.seed, self.epoch = stage, seed, 0
        self.kept: dict[str, Indices] = {}
        self.sizes: dict[str, Mapping[Unit, NDArray[np.int32]]] = {}
        self.ids: dict[str, NDArray[np.uint64]] = {}
        for part in stage.parts:
            pool = pools[part.source]
            if not len(pool):
                raise HarnessError(f"stage {stage.name}", f"{part.source!r} has no row to train on", "leave it out")
            kept = np.arange(len(pool))
            if part.limit is not None and part.limit < len(pool):
                # The stage is no part of the purpose: stages that keep some rows of a source keep the same ones.
                by_rank = np.argsort(ranks(pool.ids, seed, "part", part.source), kind="stable")
                kept = np.sort(by_rank[: part.limit])
            self.kept[part.source], self.ids[part.source] = kept, pool.ids[kept]
            tokens, trained = pool.lengths[kept], pool.loss_tokens[kept]
            ones = np.broadcast_to(np.int32(1), len(kept))
            self.sizes[part.source] = {"rows": ones, "tokens": tokens, "loss_tokens": trained}
        starts = np.cumsum([0, *(len(pools[part.source]) for part in stage.parts)])
        self.starts = {part.source: int(start) for part, start in zip(stage.parts, starts, strict=False)}
        self.drawn = {source: np.zeros(len(kept), dtype=np.int64) for source, kept in self.kept.items()}

    @property
    def resampled(self) -> bool:
        """Whether epochs differ in their rows."""
        return any(share.resample for share in self.stage.shares)

    def aims(self) -> tuple[Aim, ...]:
        """What is to be met: each share, and each of its sources by itself."""
        supplies = {source: Supply(sizes, np.empty(0, np.intp)) for source, sizes in self.sizes.items()}
        number = {part.source: index for index, part in enumerate(self.stage.parts)}
        each = _wanted(self.stage.shares, supplies)
        together = [share for share in self.stage.shares if share.sources[1:]]
        return (
            *(Aim((number[one.source],), one.share.unit, one.amount) for one in each),
            *(Aim(tuple(number[source] for source in one.sources), one.unit, one.amount) for one in together),
        )

    def draw(self) -> Drawn:
        """The rows of the next epoch. Raises HarnessError when a share would be more than `TOLERANCE` off."""
        supplies = {part.source: self._supply(part.source) for part in self.stage.parts}
        chosen = _chosen(self.stage.shares, supplies)
        raise_all(_errors(self.stage, supplies, chosen))
        rows, turns = [], []
        for source, choice in chosen.items():
            count = len(self.kept[source])
            self.drawn[source] += choice.times(count)
            local = np.concatenate([np.tile(np.arange(count), choice.copies), choice.rows])
            rows.append(self.starts[source] + self.kept[source][local])
            turns.append(np.repeat(np.arange(choice.copies + 1), [*[count] * choice.copies, len(choice.rows)]))
        self.epoch += 1
        return Drawn(np.concatenate(rows), np.concatenate(turns))

    def _supply(self, source: str) -> Supply:
        share = shares.of(self.stage, source)
        if share is None:
            return Supply(self.sizes[source], np.arange(len(self.kept[source])))
        again = share.resample and self.epoch > 0
        purpose = (self.stage.name, source) + ((str(self.epoch),) if again else ())
        rank = ranks(self.ids[source], self.seed, "mixture", *purpose)
        order = np.lexsort((rank, self.drawn[source])) if again else np.argsort(rank, kind="stable")
        return Supply(self.sizes[source], order)


Supplies = Mapping[str, Supply]
Chosen = dict[str, Choice]


@dataclass(frozen=True)
class _Wanted:
    """One source's fraction of a share. amount: of the whole mixture. slack: that may be left, of the whole."""

    source: str
    amount: float
    share: Share
    slack: float

    def near(self, supply: Supply, whole: float) -> Choice:
        return supply.near(self.share.unit, self.amount * whole, self.slack * whole, self.share.upsample)


def _wanted(all_shares: tuple[Share, ...], supplies: Supplies) -> list[_Wanted]:
    wanted = []
    for share in all_shares:
        split = shares.fractions(share, [supplies[source].total(share.unit) for source in share.sources])
        slack = 0.2 * TOLERANCE / len(share.sources)
        wanted += [_Wanted(s, share.amount * part, share, slack) for s, part in zip(share.sources, split, strict=True)]
    return wanted


def _chosen(all_shares: tuple[Share, ...], supplies: Supplies) -> Chosen:
    """The choice of every source, in the order of the supplies."""
    wanted = _wanted(all_shares, supplies)
    named = {one.source for one in wanted}
    chosen = {source: supply.everything() for source, supply in supplies.items() if source not in named}
    chosen = _beside(wanted, supplies, chosen) if chosen else _largest(wanted, supplies)
    return {source: chosen[source] for source in supplies}


def _largest(wanted: list[_Wanted], supplies: Supplies) -> Chosen:
    wholes = [(one, supplies[one.source].total(one.share.unit) / one.amount) for one in wanted if one.amount]
    scarce = [whole for one, whole in wholes if not one.share.upsample]
    whole = min(scarce) if scarce else max(whole for _, whole in wholes)
    return {one.source: one.near(supplies[one.source], whole) for one in wanted}


def _beside(wanted: list[_Wanted], supplies: Supplies, fixed: Chosen) -> Chosen:
    """The choice beside sources that give every row. Shares depend on one another: it is made anew until it stays."""
    left = 1 - math.fsum(one.amount for one in wanted)
    beside = {u: sum(supplies[source].total(u) for source in fixed) for u in UNITS}
    chosen = fixed | {one.source: one.near(supplies[one.source], beside[one.share.unit] / left) for one in wanted}
    sizes = {s: {u: supplies[s].taken(choice, u) for u in UNITS} for s, choice in chosen.items()}
    best, nearest = dict(chosen), _worst(wanted, sizes)
    for _ in range(ROUNDS):
        before = {source: dict(size) for source, size in sizes.items()}
        for one in wanted:
            unit = one.share.unit
            rest = sum(size[unit] for source, size in sizes.items() if source != one.source)
            chosen[one.source] = choice = one.near(supplies[one.source], rest / (1 - one.amount))
            sizes[one.source] = {u: supplies[one.source].taken(choice, u) for u in UNITS}
        if sizes == before:
            break
        if (worst := _worst(wanted, sizes)) < nearest:
            best, nearest = dict(chosen), worst
    return best


def _worst(wanted: list[_Wanted], sizes: Mapping[str, Mapping[Unit, int]]) -> float:
    """The largest distance of a source from its fraction."""
    wholes = {u: sum(size[u] for size in sizes.values()) for u in UNITS}
    return max((abs(sizes[w.source][w.share.unit] / wholes[w.share.unit] - w.amount) for w in wanted), default=0.0)


# -- what cannot be met -----------------------------------------------------------------------------------------------


def _unmet(
    all_shares: tuple[Share, ...], supplies: Supplies, chosen: Chosen
) -> Iterator[tuple[Share, dict[str, float]]]:
    """The shares more than `TOLERANCE` off, together or in one source, each with what its sources realise."""
    for share in all_shares:
        whole = sum(supplies[source].taken(choice, share.unit) for source, choice in chosen.items())
        found = {s: supplies[s].taken(chosen[s], share.unit) / whole for s in share.sources}
        gaps = [math.fsum(found.values()) - share.amount]
        gaps += [found[one.source] - one.amount for one in _wanted((share,), supplies)]
        if max(map(abs, gaps)) > TOLERANCE + 1e-9:
            yield share, found


def _errors(stage: Stage, supplies: Supplies, chosen: Chosen) -> Iterator[HarnessError]:
    whole_sources = len({source for share in stage.shares for source in share.sources}) < len(supplies)
    for share, found in _unmet(stage.shares, supplies, chosen):
        where, unit = f"stage {stage.name}", share.unit.replace("_", " ")
        asked = f"{100 * share.amount:.1f} % of {shares.listed(share.sources)}"
        wanted = {one.source: one.amount for one in _wanted((share,), supplies)}
        short = [s for s in found if _is_all(chosen[s]) and found[s] < wanted[s]]
        if short and whole_sources and not share.upsample:
            having = " and ".join(f"all {supplies[s].total(share.unit)} {unit} of {s!r}" for s in short)
            most = _possible(stage.shares, share, supplies)
            possible = "no such share is possible" if most is None else f"at most {100 * most:.1f} % is possible"
            hint = "lower the share, add rows to it, let it repeat rows (upsample), or set a limit on the other sources"
            yield HarnessError(where, f"{asked} cannot be met: with {having} {possible}", hint)
        else:
            near = ", ".join(
                f"{100 * part:.1f} %" + (f" of {s!r}" if found.keys() - {s} else "") for s, part in found.items()
            )
            what = f"{asked} in {unit} cannot be met: whole rows come no nearer than {near}"
            yield HarnessError(where, what, "use more rows in the stage, or shorter ones, or ask for that share")


def _is_all(choice: Choice) -> bool:
    return choice.copies == 1 and not len(choice.rows)


def _possible(all_shares: tuple[Share, ...], share: Share, supplies: Supplies) -> float | None:
    """The largest amount of a share, in tenths of a point, that its sources' rows allow beside the other shares.

    Found from the sizes and then tried, since what is said to be possible must be possible. None: none was found.
    """
    others = tuple(other for other in all_shares if other is not share)
    named = {source for one in all_shares for source in one.sources}
    beside = sum(supply.total(share.unit) for source, supply in supplies.items() if source not in named)
    left = 1 - math.fsum(other.amount for other in others)
    totals = [supplies[source].total(share.unit) for source in share.sources]
    bound = min(
        total * left / (part * beside + total)
        for total, part in zip(totals, shares.fractions(share, totals), strict=True)
    )
    most = math.floor(1000 * min(bound, share.amount))
    for tenths in range(most, max(most - TRIED, 0), -1):
        changed = (*others, replace(share, amount=tenths / 1000))
        if not any(True for _ in _unmet(changed, supplies, _chosen(changed, supplies))):
            return tenths / 1000
    return None
