"""What the shares of a stage mean, as far as it can be said without a row: whether they fit together, how they split.

Imports nothing heavy: `harness validate` asks it too.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

from harness.errors import HarnessError
from harness.types import Share, ShareUnit, Stage


def share_of_source(stage: Stage, source: str) -> Share | None:
    """The share that names a source; None: every one of its rows is used."""
    return next((share for share in stage.shares if source in share.sources), None)


def unit_of_source(stage: Stage, source: str) -> ShareUnit:
    """The unit in which a source's part of the mixture is told: that of its share, else loss tokens."""
    share = share_of_source(stage, source)
    return "loss_tokens" if share is None else share.unit


def realized_share(share: Share, shares: Mapping[str, Mapping[str, float]]) -> float:
    """What a share's sources together are of a mixture. shares: as in `StageData.shares`."""
    return math.fsum(shares.get(source, {}).get(share.unit, 0.0) for source in share.sources)


def split_share(share: Share, sizes: Sequence[float]) -> tuple[float, ...]:
    """How a share is split among its sources; sums to 1.

    sizes: of each source, all the rows it has, in the share's unit. By temperature T a source counts as
    size ** (1 / T): in proportion at 1, more evenly above (Lample and Conneau, 2019, arXiv:1901.07291; Conneau et al.,
    2019, arXiv:1911.02116, where the exponent 1 / T is 0.3). Without weights and temperature: evenly.
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
    """What is wrong with a stage's parts and shares, whatever its sources hold."""
    where = f"stage {stage.name}"
    sources = [part.source for part in stage.sources]
    named = [source for share in stage.shares for source in share.sources]
    for source in dict.fromkeys(sources):
        if sources.count(source) > 1:
            yield HarnessError(where, f"the source {source!r} stands in it twice", "name it once")
    for source in dict.fromkeys(named):
        if source not in sources:
            yield HarnessError(where, f"a share names {source!r}, which is no source of it", "add it to the stage")
        if named.count(source) > 1:
            yield HarnessError(where, f"the source {source!r} has two shares", "state one share for each source")
    for part in stage.sources:
        if part.limit is not None and part.limit < 1:
            what = f"the source {part.source!r} is limited to {part.limit} rows"
            yield HarnessError(where, what, "let the limit be 1 at least, or leave the source out")
    for share in stage.shares:
        yield from _validate_share(where, share)
    if stage.shares:
        yield from _validate_share_total(where, stage, set(sources) - set(named))


def _validate_share(where: str, share: Share) -> Iterator[HarnessError]:
    if not share.sources:
        yield HarnessError(where, "a share names no source", "name one at least")
    if not 0 <= share.amount <= 1:
        yield HarnessError(where, "a share lies outside 0 to 1", "a share is of the final mixture, e.g. 0.1")
    if share.weights is not None and share.temperature is not None:
        what = f"the share of {join_names(share.sources)} is split by weights and by temperature"
        yield HarnessError(where, what, "give one of the two")
    if share.weights is not None and (
        len(share.weights) != len(share.sources) or any(not 0 < weight < math.inf for weight in share.weights)
    ):
        what = f"the weights of {join_names(share.sources)} are {', '.join(f'{weight:g}' for weight in share.weights)}"
        yield HarnessError(where, what, "give each source a weight above 0")
    if share.temperature is not None and not share.temperature > 0:
        what = f"the share of {join_names(share.sources)} has the temperature {share.temperature:g}"
        yield HarnessError(where, what, "let it be above 0; 1 splits in proportion to the sizes")


def _validate_share_total(where: str, stage: Stage, rest: set[str]) -> Iterator[HarnessError]:
    total = math.fsum(share.amount for share in stage.shares)
    if rest:
        if total >= 1:
            what = f"the shares sum to {total:.4g}, which leaves nothing for the sources without a share"
            yield HarnessError(where, what, "let them sum to less than 1")
    elif abs(total - 1) > 1e-6:
        what = f"every source has a share, and the shares sum to {total:.4g}"
        yield HarnessError(where, what, "let them sum to 1, or leave one source without a share: all its rows are used")
    elif len({share.unit for share in stage.shares}) > 1:
        yield HarnessError(where, "every source has a share, in different units", "state all of them in one unit")


def join_names(sources: Sequence[str]) -> str:
    """The sources as they are named in a sentence."""
    return " and ".join([", ".join(map(repr, sources[:-1])), repr(sources[-1])] if sources[1:] else map(repr, sources))
