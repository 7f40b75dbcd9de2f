"""What a stage trains of the epoch that it ends within: so many slots, chosen so that every share is met in them.

Knows sizes of slots, nothing of rows or of how epochs are ordered. The beginning of an even order holds every source in
its share of slots; but rows differ in length, and a share of tokens may be missed by far in a few of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness.data.mixing.mixture import MAX_SHARE_ERROR, TargetShare
from harness.data.mixing.packing import PackedSequences
from harness.errors import HarnessError
from harness.spec import shares
from harness.types import ShareUnit, Stage

MAX_SWAP_CANDIDATES = 384
"""Slots on either side that may be exchanged: of each kind alike, spread over their sizes."""

MAX_SWAPS = 400
"""Exchanges at most."""

MAX_SOURCE_PAIRS_TRIED = 24
"""Pairs of kinds of which one slot more and one less are tried."""

EXTRA_STEPS_TRIED, DOUBLINGS_TRIED = 8, 8
"""How often one step more is tried, and then twice as many, before no number of them is said to be enough."""

Indices = NDArray[np.intp]
SizeArray = NDArray[np.int64]


def target_sizes(
    sequences: PackedSequences,
    targets: Sequence[TargetShare],
    sizes: Mapping[ShareUnit, NDArray[Any]],
    row_sources: NDArray[Any],
) -> SizeArray:
    """(2, K, N) of each of K aims and N slots: what the aim's sources have there, and what all have, in its unit.

    sizes: unit -> (R,) size of every row. source: (R,) of every row, as `Aim.sources` names them.
    """
    made = np.empty((2, len(targets), len(sequences)), np.int64)
    for number, aim in enumerate(targets):
        size = sizes[aim.unit]
        made[0, number] = sequences.sum_sizes(np.where(np.isin(row_sources, aim.sources), size, 0))
        made[1, number] = sequences.sum_sizes(size)
    return made


def realized_shares(totals: NDArray[Any]) -> NDArray[np.float64]:
    """(K,) the shares that totals, (2, K), come to."""
    return np.asarray(totals[0] / totals[1], np.float64)


def worst_share_error(totals: NDArray[Any], target_fractions: NDArray[np.float64]) -> float:
    """How far the aim that is missed most lies from its share."""
    return float(np.abs(realized_shares(totals) - target_fractions).max())


@dataclass(frozen=True)
class PartialEpoch:
    """An epoch of N slots of which a stage trains some, and the K shares that are to hold in what it trains.

    sizes: (2, K, N), see `measured`. wanted: (K,) the aims' shares. kinds, turns: (N,) of each slot; of a kind, those
    of the lowest turns are taken. before: (2, K) what counts beside the slots.
    """

    sizes: SizeArray
    target_fractions: NDArray[np.float64]
    source_ids: NDArray[Any]
    repeat_indices: NDArray[Any]
    size_before: SizeArray

    def total_sizes(self, selected: NDArray[np.bool_]) -> SizeArray:
        """(2, K) what the slots inside, (N,), come to with what counts beside them."""
        return np.asarray(self.sizes[:, :, selected].sum(axis=2) + self.size_before, np.int64)

    def worst_share_error(self, selected: NDArray[np.bool_]) -> float:
        """How far the aim that these slots miss most lies from its share."""
        return worst_share_error(self.total_sizes(selected), self.target_fractions)


def rebalance_by_swaps(selected: NDArray[np.bool_], epoch: PartialEpoch) -> NDArray[np.bool_]:
    """The slots inside, with some exchanged for others until no aim is missed by more than `MAX_SHARE_ERROR`.

    Each time the two slots are exchanged after which the worst aim is nearest, first of those of one kind. Only where
    that does not do, also after one slot of one kind has given way to one of another, the numbers of slots of the kinds
    change, by as few as will do. Where no exchange brings it nearer, that is all that can be had.
    inside: (N,) which slots are taken; their number stays.
    """
    if epoch.worst_share_error(selected) <= MAX_SHARE_ERROR:
        return selected
    every = len(selected)
    rising = [0, *(2**power for power in range(every.bit_length() + 1))]
    tried = [
        *(
            (start, [0])
            for start in (selected, *islice(_shift_one_between_sources(selected, epoch), MAX_SOURCE_PAIRS_TRIED))
        ),
        (selected, rising),
        (selected, [every]),
    ]
    for start, bounds in tried:
        found = _swap_sequences(start, epoch, bounds)
        if epoch.worst_share_error(found) <= MAX_SHARE_ERROR:
            break
    return found


def _shift_one_between_sources(selected: NDArray[np.bool_], epoch: PartialEpoch) -> Iterator[NDArray[np.bool_]]:
    """The slots inside with one of a kind less and one of another kind more: every pair of kinds once."""
    kinds, turns = epoch.source_ids, epoch.repeat_indices
    taken, left = np.flatnonzero(selected), np.flatnonzero(~selected)
    for fewer in np.unique(kinds[taken]).tolist():
        own = taken[kinds[taken] == fewer]
        for more in np.unique(kinds[left]).tolist():
            if more != fewer:
                others = left[kinds[left] == more]
                made = selected.copy()
                made[own[np.argmax(turns[own])]], made[others[np.argmin(turns[others])]] = False, True
                yield made


def _swap_sequences(
    selected: NDArray[np.bool_], epoch: PartialEpoch, source_count_bounds: Sequence[int]
) -> NDArray[np.bool_]:
    """As `rebalance_by_swaps`, once.

    bounds: how many slots more or fewer than at first a kind may have, one after the other.
    """
    sizes, wanted, kinds, turns = epoch.sizes, epoch.target_fractions, epoch.source_ids, epoch.repeat_indices
    selected, source_count_bounds = selected.copy(), list(source_count_bounds)
    apart = source_count_bounds.pop(0)
    total = epoch.total_sizes(selected)
    more = np.zeros(int(kinds.max()) + 1, np.int64)
    worst = int(np.argmax(np.abs(realized_shares(total) - wanted)))
    value = sizes[0, worst] - wanted[worst] * sizes[1, worst]
    there = _swap_candidates(np.flatnonzero(selected), kinds, -turns, value)
    others = _swap_candidates(np.flatnonzero(~selected), kinds, turns, value)
    for _ in range(MAX_SWAPS):
        after = total[:, :, None, None] + sizes[:, :, None, others] - sizes[:, :, there, None]  # (2, K, there, others)
        left = np.abs(after[0] / after[1] - wanted[:, None, None]).max(axis=0)
        uneven = (kinds[there][:, None] == kinds[others]) & (turns[there][:, None] != turns[others])
        left[uneven] = np.inf  # a row would stand twice where another one of its source does not stand once
        far = (more[kinds[there]] <= -apart)[:, None] | (more[kinds[others]] >= apart)[None, :]
        left[far & (kinds[there][:, None] != kinds[others])] = np.inf
        out, into = np.unravel_index(int(np.argmin(left)), left.shape)
        if left[out, into] >= worst_share_error(total, wanted):
            if not source_count_bounds:
                break
            apart = source_count_bounds.pop(0)
            continue
        total = after[:, :, out, into]
        more[kinds[there[out]]] -= 1
        more[kinds[others[into]]] += 1
        selected[there[out]], selected[others[into]] = False, True
        there[out], others[into] = others[into], there[out]
        if worst_share_error(total, wanted) <= MAX_SHARE_ERROR:
            break
        if turns.any():  # a turn may be used up, or begun, by what was exchanged
            there = _swap_candidates(np.flatnonzero(selected), kinds, -turns, value)
            others = _swap_candidates(np.flatnonzero(~selected), kinds, turns, value)
    return selected


def _swap_candidates(
    sequences: Indices, source_ids: NDArray[Any], repeat_indices: NDArray[Any], share_excess: NDArray[np.float64]
) -> Indices:
    """Those of some slots that may be exchanged: of each kind the ones of the lowest turn, evenly over their values."""
    every = np.unique(source_ids[sequences])
    found = []
    for kind in every.tolist():
        own = sequences[source_ids[sequences] == kind]
        own = own[repeat_indices[own] == repeat_indices[own].min()]
        own = own[np.argsort(share_excess[own], kind="stable")]
        count = min(len(own), max(MAX_SWAP_CANDIDATES // len(every), 1))
        found.append(own[np.linspace(0, len(own) - 1, count).round().astype(np.intp)])
    return np.concatenate([np.empty(0, np.intp), *found])


class ShareUnreachable(Exception):
    """A share that is missed in what a stage trains.

    found: (K,) what each aim comes to, at its nearest. slots: that the stage trains in all.
    """

    def __init__(
        self, stage: Stage, targets: Sequence[TargetShare], realized: NDArray[np.float64], num_sequences: int
    ) -> None:
        super().__init__(stage.name)
        self.stage, self.targets, self.realized, self.num_sequences = stage, targets, realized, num_sequences

    def to_error(self, is_feasible: Callable[[Stage], bool]) -> HarnessError:
        """The error, with what is possible. fits: whether a stage's shares are met; what is said is tried first."""
        worst = int(np.argmax([abs(one - aim.amount) for one, aim in zip(self.realized, self.targets, strict=True)]))
        aim, found = self.targets[worst], float(self.realized[worst])
        named = tuple(self.stage.sources[number].source for number in aim.sources)
        what = (
            f"{100 * aim.amount:.1f} % of {shares.join_names(named)} in {aim.unit.replace('_', ' ')} cannot be met: it "
            f"ends within an epoch, after {self.num_sequences} slots, and whole rows come no nearer than "
            f"{100 * found:.1f} %"
        )
        ways = [
            next(
                (f"train longer ({told} will do)" for told, one in self._longer_stages() if is_feasible(one)),
                "train longer",
            )
        ]
        nearest = round(found, 3)
        changed = tuple(replace(one, amount=nearest) if one.sources == named else one for one in self.stage.shares)
        if nearest and changed != self.stage.shares and is_feasible(replace(self.stage, shares=changed)):
            ways.append(f"ask for {100 * nearest:.1f} %")
        return HarnessError(f"stage {self.stage.name}", what, f"{', or '.join(ways)}, or leave the share out")

    def _longer_stages(self) -> Iterator[tuple[str, Stage]]:
        """The stage with more to train, and what that is called."""
        train = self.stage.train
        if train["steps"] is not None:
            name, begun = "steps", train["steps"]
            tried = [begun + more for more in range(1, EXTRA_STEPS_TRIED + 1)]
            tried += [begun << doubled for doubled in range(1, DOUBLINGS_TRIED + 1) if begun << doubled > tried[-1]]
        else:
            name, begun = "epochs", train["epochs"]
            tried = [
                begun * 2**doubled for doubled in range(1, DOUBLINGS_TRIED + 1) if begun * 2**doubled < math.ceil(begun)
            ]
            tried.append(math.ceil(begun))
        for more in tried:
            yield f"train.{name} {more:g}", replace(self.stage, train={**train, name: more})
