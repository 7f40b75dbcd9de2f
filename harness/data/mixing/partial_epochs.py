"""Select what a stage trains of an epoch that it does not complete, so that every share is met exactly.

The beginning of an even order contains every source in its share of sequences. But rows differ in length, so a share of
tokens may be far off in a few of them. Swaps of sequences correct that::

    epoch order      d d g d d | d g d d d      the stage ends at |
    selected         1 1 1 1 1   0 0 0 0 0
    after one swap   1 1 0 1 1   0 1 0 0 0      a longer or shorter row of g
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
from harness.types import ShareUnit, Stage
from harness.utils.formatting import join_names

MAX_SWAP_CANDIDATES = 384
"""Sequences on either side that may be swapped: equally many of each source, spread over their sizes."""

MAX_SWAPS = 400
"""Maximum number of swaps."""

MAX_SOURCE_PAIRS_TRIED = 24
"""Pairs of sources tried with one sequence less of the first and one more of the second."""

EXTRA_STEPS_TRIED, DOUBLINGS_TRIED = 8, 8
"""How often one more step is tried, and then twice as many, before no number of steps is suggested."""

Indices = NDArray[np.intp]
SizeArray = NDArray[np.int64]


def target_sizes(
    sequences: PackedSequences,
    targets: Sequence[TargetShare],
    sizes: Mapping[ShareUnit, NDArray[Any]],
    row_sources: NDArray[Any],
) -> SizeArray:
    """Measure N sequences for each of K target shares, in the unit of the share.

    Args:
        sequences: The sequences.
        targets: The target shares.
        sizes: Unit -> (R,) size of every row.
        row_sources: (R,) the source of every row, as in `TargetShare.sources`.

    Returns:
        (2, K, N): the size of the target's sources in each sequence, and the size of all sources in it.
    """
    measured = np.empty((2, len(targets), len(sequences)), np.int64)
    for index, target in enumerate(targets):
        row_sizes = sizes[target.unit]
        of_target = np.isin(row_sources, target.sources)
        measured[0, index] = sequences.sum_sizes(np.where(of_target, row_sizes, 0))
        measured[1, index] = sequences.sum_sizes(row_sizes)
    return measured


def realized_shares(totals: NDArray[Any]) -> NDArray[np.float64]:
    """Return the shares, (K,), of totals (2, K)."""
    return np.asarray(totals[0] / totals[1], np.float64)


def worst_share_error(totals: NDArray[Any], target_fractions: NDArray[np.float64]) -> float:
    """Return the largest distance of a share from its target."""
    return float(np.abs(realized_shares(totals) - target_fractions).max())


@dataclass(frozen=True)
class PartialEpoch:
    """An epoch of N sequences of which a stage trains some, and the K shares that must hold in what it trains.

    Attributes:
        sizes: (2, K, N), see `target_sizes`.
        target_fractions: (K,) the target shares.
        source_ids: (N,) the source of each sequence.
        repeat_indices: (N,) of a source, the sequences with the lowest number are taken first.
        size_before: (2, K) sizes of what the stage trained before and that counts as well.
    """

    sizes: SizeArray
    target_fractions: NDArray[np.float64]
    source_ids: NDArray[Any]
    repeat_indices: NDArray[Any]
    size_before: SizeArray

    def total_sizes(self, selected: NDArray[np.bool_]) -> SizeArray:
        """Return the sizes, (2, K), of the selected sequences, (N,), with what counts as well."""
        return np.asarray(self.sizes[:, :, selected].sum(axis=2) + self.size_before, np.int64)

    def worst_share_error(self, selected: NDArray[np.bool_]) -> float:
        """Return the largest distance of a share from its target, with the selected sequences."""
        return worst_share_error(self.total_sizes(selected), self.target_fractions)


def rebalance_by_swaps(selected: NDArray[np.bool_], epoch: PartialEpoch) -> NDArray[np.bool_]:
    """Swap selected sequences for others until no share is more than `MAX_SHARE_ERROR` off.

    Each swap is the one after which the worst share is nearest to its target. Swaps within a source are tried first,
    also after one sequence of one source is replaced by one of another. Only if that is not enough, the number of
    sequences of a source changes, by as few as necessary. The search ends where no swap reduces the error.

    Args:
        selected: (N,) which sequences are selected.
        epoch: The epoch and its target shares.

    Returns:
        (N,) the new selection, of equally many sequences.
    """
    if epoch.worst_share_error(selected) <= MAX_SHARE_ERROR:
        return selected
    num_sequences = len(selected)
    doubling_bounds = [0, *(2**power for power in range(num_sequences.bit_length() + 1))]
    shifted = islice(_shift_one_between_sources(selected, epoch), MAX_SOURCE_PAIRS_TRIED)
    attempts = [
        *((start, [0]) for start in (selected, *shifted)),
        (selected, doubling_bounds),
        (selected, [num_sequences]),
    ]
    for start, bounds in attempts:
        rebalanced = _swap_sequences(start, epoch, bounds)
        if epoch.worst_share_error(rebalanced) <= MAX_SHARE_ERROR:
            break
    return rebalanced


def _shift_one_between_sources(selected: NDArray[np.bool_], epoch: PartialEpoch) -> Iterator[NDArray[np.bool_]]:
    """Yield the selection with one sequence less of one source and one more of another, for each pair of sources."""
    source_ids, repeat_indices = epoch.source_ids, epoch.repeat_indices
    inside, outside = np.flatnonzero(selected), np.flatnonzero(~selected)
    for fewer in np.unique(source_ids[inside]).tolist():
        removable = inside[source_ids[inside] == fewer]
        for more in np.unique(source_ids[outside]).tolist():
            if more != fewer:
                addable = outside[source_ids[outside] == more]
                shifted = selected.copy()
                shifted[removable[np.argmax(repeat_indices[removable])]] = False
                shifted[addable[np.argmin(repeat_indices[addable])]] = True
                yield shifted


def _swap_sequences(
    selected: NDArray[np.bool_], epoch: PartialEpoch, source_count_bounds: Sequence[int]
) -> NDArray[np.bool_]:
    """Swap sequences as `rebalance_by_swaps` does, from one start.

    Args:
        selected: (N,) which sequences are selected.
        epoch: The epoch and its target shares.
        source_count_bounds: By how many sequences the count of a source may change. The next bound is used when no swap
            within the current one reduces the error.
    """
    sizes, target_fractions = epoch.sizes, epoch.target_fractions
    source_ids, repeat_indices = epoch.source_ids, epoch.repeat_indices
    selected, bounds = selected.copy(), list(source_count_bounds)
    bound = bounds.pop(0)
    total = epoch.total_sizes(selected)
    count_changes = np.zeros(int(source_ids.max()) + 1, np.int64)
    worst = int(np.argmax(np.abs(realized_shares(total) - target_fractions)))
    excess = sizes[0, worst] - target_fractions[worst] * sizes[1, worst]  # (N,) of the worst share
    inside = _swap_candidates(np.flatnonzero(selected), source_ids, -repeat_indices, excess)
    outside = _swap_candidates(np.flatnonzero(~selected), source_ids, repeat_indices, excess)
    for _ in range(MAX_SWAPS):
        after = total[:, :, None, None] + sizes[:, :, None, outside] - sizes[:, :, inside, None]  # (2, K, in, out)
        errors = np.abs(after[0] / after[1] - target_fractions[:, None, None]).max(axis=0)  # (in, out)
        is_same_source = source_ids[inside][:, None] == source_ids[outside]
        # A row would repeat before all other rows of its source are taken.
        errors[is_same_source & (repeat_indices[inside][:, None] != repeat_indices[outside])] = np.inf
        is_at_bound = (count_changes[source_ids[inside]] <= -bound)[:, None]
        is_at_bound = is_at_bound | (count_changes[source_ids[outside]] >= bound)[None, :]
        errors[is_at_bound & ~is_same_source] = np.inf
        out, into = np.unravel_index(int(np.argmin(errors)), errors.shape)
        if errors[out, into] >= worst_share_error(total, target_fractions):
            if not bounds:
                break
            bound = bounds.pop(0)
            continue
        total = after[:, :, out, into]
        count_changes[source_ids[inside[out]]] -= 1
        count_changes[source_ids[outside[into]]] += 1
        selected[inside[out]], selected[outside[into]] = False, True
        inside[out], outside[into] = outside[into], inside[out]
        if worst_share_error(total, target_fractions) <= MAX_SHARE_ERROR:
            break
        if repeat_indices.any():  # the swap may have used up a repetition, or begun one
            inside = _swap_candidates(np.flatnonzero(selected), source_ids, -repeat_indices, excess)
            outside = _swap_candidates(np.flatnonzero(~selected), source_ids, repeat_indices, excess)
    return selected


def _swap_candidates(
    sequences: Indices, source_ids: NDArray[Any], repeat_indices: NDArray[Any], share_excess: NDArray[np.float64]
) -> Indices:
    """Return the sequences that may be swapped: of each source those of the lowest repeat index, spread by excess."""
    sources = np.unique(source_ids[sequences])
    candidates = []
    for source in sources.tolist():
        of_source = sequences[source_ids[sequences] == source]
        of_source = of_source[repeat_indices[of_source] == repeat_indices[of_source].min()]
        of_source = of_source[np.argsort(share_excess[of_source], kind="stable")]
        count = min(len(of_source), max(MAX_SWAP_CANDIDATES // len(sources), 1))
        candidates.append(of_source[np.linspace(0, len(of_source) - 1, count).round().astype(np.intp)])
    return np.concatenate([np.empty(0, np.intp), *candidates])


class ShareUnreachable(Exception):
    """A share cannot be met in what a stage trains.

    Attributes:
        stage: The stage.
        targets: The K target shares.
        realized: (K,) the nearest shares that were found.
        num_sequences: Sequences that the stage trains in total.
    """

    def __init__(
        self, stage: Stage, targets: Sequence[TargetShare], realized: NDArray[np.float64], num_sequences: int
    ) -> None:
        super().__init__(stage.name)
        self.stage, self.targets, self.realized, self.num_sequences = stage, targets, realized, num_sequences

    def to_error(self, is_feasible: Callable[[Stage], bool]) -> HarnessError:
        """Return the error for the user, with remedies that work.

        Args:
            is_feasible: Whether the shares of a stage are met; each suggested change is tried with it.
        """
        errors = [abs(share - target.amount) for share, target in zip(self.realized, self.targets, strict=True)]
        worst = int(np.argmax(errors))
        target, nearest = self.targets[worst], float(self.realized[worst])
        sources = tuple(self.stage.sources[index].source for index in target.sources)
        requested = f"{100 * target.amount:.1f} % of {join_names(sources, quote=True, last=' and ')}"
        what = (
            f"{requested} in {target.unit.replace('_', ' ')} cannot be met: the stage ends within an epoch, after "
            f"{self.num_sequences} sequences, and the nearest share that complete rows allow is {100 * nearest:.1f} %"
        )
        settings = (setting for setting, stage in self._longer_stages() if is_feasible(stage))
        setting = next(settings, None)
        remedies = ["train longer" if setting is None else f"set {setting}"]
        amount = round(nearest, 3)
        changed = tuple(
            replace(share, amount=amount) if share.sources == sources else share for share in self.stage.shares
        )
        if amount and changed != self.stage.shares and is_feasible(replace(self.stage, shares=changed)):
            remedies.append(f"set the share to {amount:g}")
        return HarnessError(f"stage {self.stage.name}", what, f"{', or '.join(remedies)}, or remove the share")

    def _longer_stages(self) -> Iterator[tuple[str, Stage]]:
        """Yield stages that train longer, with the setting that makes them so."""
        train = self.stage.train
        if train["steps"] is not None:
            name, current = "steps", train["steps"]
            values = [current + more for more in range(1, EXTRA_STEPS_TRIED + 1)]
            doubled = [current << power for power in range(1, DOUBLINGS_TRIED + 1)]
            values += [value for value in doubled if value > values[-1]]
        else:
            name, current = "epochs", train["epochs"]
            doubled = [current * 2**power for power in range(1, DOUBLINGS_TRIED + 1)]
            values = [*(value for value in doubled if value < math.ceil(current)), math.ceil(current)]
        for value in values:
            yield f"train.{name} to {value:g}", replace(self.stage, train={**train, name: value})
