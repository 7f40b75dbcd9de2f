"""Mixture shares of a stage, as far as they are known without rows: whether they are consistent, how they are split.

Imports nothing heavy, since `harness validate` uses it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

from harness.errors import HarnessError
from harness.types import Share, ShareUnit, Stage
from harness.utils.formatting import join_names


def share_of_source(stage: Stage, source: str) -> Share | None:
    """Return the share that names a source; None: all its rows are used."""
    return next((share for share in stage.shares if source in share.sources), None)


def unit_of_source(stage: Stage, source: str) -> ShareUnit:
    """Return the unit in which a source's share is reported: that of its share, else trained tokens."""
    share = share_of_source(stage, source)
    return "loss_tokens" if share is None else share.unit


def realized_share(share: Share, shares: Mapping[str, Mapping[str, float]]) -> float:
    """Return the fraction of a mixture that a share's sources have together.

    Args:
        share: The share.
        shares: Source -> unit -> fraction, as in `StageDataset.shares`.
    """
    return math.fsum(shares.get(source, {}).get(share.unit, 0.0) for source in share.sources)


def split_share(share: Share, sizes: Sequence[float]) -> tuple[float, ...]:
    """Split a share among its sources.

    With temperature T a source counts as size ** (1 / T): in proportion at 1, more evenly above (Lample and Conneau,
    2019, arXiv:1901.07291; Conneau et al., 2019, arXiv:1911.02116, where the exponent 1 / T is 0.3). Without weights
    and temperature the split is even.

    Args:
        share: The share.
        sizes: The size of each source, all its rows, in the share's unit.

    Returns:
        The fraction of each source; they sum to 1.
    """
    if share.weights is not None:
        parts = list(share.weights)
    elif share.temperature is not None:
        logs = [math.log(size) / share.temperature if size > 0 else -math.inf for size in sizes]
        parts = [math.exp(log - max(logs)) for log in logs]  # as a power it would overflow at low temperatures
    else:
        parts = [1.0] * len(share.sources)
    return tuple(part / math.fsum(parts) for part in parts)


def validate_shares(stage: Stage) -> Iterator[HarnessError]:
    """Yield an error for everything that is wrong with a stage's sources and shares."""
    where = f"stage {stage.name}"
    sources = [stage_source.source for stage_source in stage.sources]
    named = [source for share in stage.shares for source in share.sources]
    for source in dict.fromkeys(sources):
        if sources.count(source) > 1:
            yield HarnessError(where, f"the source {source!r} occurs twice", "name it once")
    for source in dict.fromkeys(named):
        if source not in sources:
            yield HarnessError(
                where, f"a share names {source!r}, which is not a source of the stage", "add it to the stage"
            )
        if named.count(source) > 1:
            yield HarnessError(where, f"the source {source!r} has two shares", "state one share for each source")
    for stage_source in stage.sources:
        if stage_source.limit is not None and stage_source.limit < 1:
            what = f"the source {stage_source.source!r} is limited to {stage_source.limit} rows"
            yield HarnessError(where, what, "set the limit to at least 1, or remove the source")
    for share in stage.shares:
        yield from _validate_share(where, share)
    if stage.shares:
        yield from _validate_share_total(where, stage, set(sources) - set(named))


def _validate_share(where: str, share: Share) -> Iterator[HarnessError]:
    if not share.sources:
        yield HarnessError(where, "a share names no source", "name at least one")
    if not 0 <= share.amount <= 1:
        yield HarnessError(where, "a share is outside [0, 1]", "a share is of the final mixture, e.g. 0.1")
    sources = join_names(share.sources, quote=True, last=" and ")
    if share.weights is not None and share.temperature is not None:
        what = f"the share of {sources} is split by weights and by temperature"
        yield HarnessError(where, what, "give one of the two")
    if share.weights is not None and (
        len(share.weights) != len(share.sources) or any(not 0 < weight < math.inf for weight in share.weights)
    ):
        what = f"the weights of {sources} are {', '.join(f'{weight:g}' for weight in share.weights)}"
        yield HarnessError(where, what, "give each source a weight above 0")
    if share.temperature is not None and not share.temperature > 0:
        what = f"the share of {sources} has the temperature {share.temperature:g}"
        yield HarnessError(where, what, "set it above 0; 1 splits in proportion to the sizes")


def _validate_share_total(where: str, stage: Stage, rest: set[str]) -> Iterator[HarnessError]:
    total = math.fsum(share.amount for share in stage.shares)
    if rest:
        if total >= 1:
            what = f"the shares sum to {total:.4g}, which leaves nothing for the sources without a share"
            yield HarnessError(where, what, "reduce them to a sum below 1")
    elif abs(total - 1) > 1e-6:
        what = f"every source has a share, and the shares sum to {total:.4g}"
        yield HarnessError(
            where, what, "make them sum to 1, or remove the share of one source: then all its rows are used"
        )
    elif len({share.unit for share in stage.shares}) > 1:
        yield HarnessError(where, "every source has a share, in different units", "state all of them in one unit")
