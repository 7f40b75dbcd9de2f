"""Which rows a stage trains on, so that each source has the share of the final mixture that was asked for.

Knows tokenised rows and sizes, nothing of templates or files. Rows are chosen once for a stage, without replacement,
by seeded hash; every epoch has the same rows. A larger share of the same stage keeps the rows of a smaller one.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence

from harness.contracts import Part, Row, Stage, Unit
from harness.data.splits import ranked
from harness.errors import HarnessError, raise_all

TOLERANCE = 0.005
"""How far a realised share may lie from the one asked for: half a percentage point of the mixture."""

UNITS: tuple[Unit, ...] = ("rows", "tokens", "loss_tokens")

Sizes = Mapping[str, Sequence[Mapping[Unit, int]]]
"""Source -> sizes of its rows by unit."""

Chosen = dict[str, list[int]]
"""Source -> indices of the rows chosen."""


def mix(stage: Stage, rows: Mapping[str, Sequence[Row]], seed: int) -> tuple[Row, ...]:
    """The rows that a stage trains on, part by part, each part in its source's order.

    A part without a share gives every row. A part with a share gives as many of its rows as make that share of the
    whole, counted in its unit. When every part has a share, the mixture is the largest that the shares allow.
    Raises HarnessError when a realised share would lie more than `TOLERANCE` from the one asked for.
    """
    _check(stage)
    pools: dict[str, list[Row]] = {}
    for part in stage.parts:
        by_id = {row.id: row for row in rows[part.source]}
        pools[part.source] = [by_id[key] for key in ranked(list(by_id), seed, "mixture", stage.name, part.source)]
    sizes = {source: [_sizes(row) for row in pool] for source, pool in pools.items()}
    if all(part.share is not None for part in stage.parts):
        chosen = _largest(stage.parts, sizes)
    else:
        chosen = _beside(stage.parts, sizes)
    raise_all(_missed(stage, sizes, chosen))
    taken = {source: {pools[source][index].id for index in indices} for source, indices in chosen.items()}
    return tuple(row for part in stage.parts for row in rows[part.source] if row.id in taken[part.source])


def shares(rows: Sequence[Row], times: Sequence[int]) -> dict[str, dict[str, float]]:
    """Source -> its share of the rows, of their tokens and of their loss tokens. times: how often each row counts."""
    totals: dict[str, dict[str, int]] = {}
    for row, count in zip(rows, times, strict=True):
        of_source = totals.setdefault(row.source, dict.fromkeys(UNITS, 0))
        for unit, size in _sizes(row).items():
            of_source[unit] += count * size
    whole = {unit: sum(of_source[unit] for of_source in totals.values()) for unit in UNITS}
    return {source: {unit: size[unit] / whole[unit] for unit in UNITS} for source, size in totals.items()}


def nearest(sizes: Sequence[int], target: float, slack: float = 0.0) -> list[int]:
    """Indices of sizes whose sum is as near `target` as a plain search brings it.

    Takes sizes from the front while they fit, then the one of the others that brings the sum nearest; while the sum
    is still more than `slack` off, exchanges one for one. At least one index when target > 0 and there is any size.
    """
    if target <= 0 or not sizes:
        return []
    chosen, total = [], 0
    for index, size in enumerate(sizes):
        if total + size > target:
            break
        chosen.append(index)
        total += size
    others = sorted((size, index) for index, size in enumerate(sizes[len(chosen) :], len(chosen)))
    best = _closest(others, target - total) if others else None
    if best is not None and (not chosen or abs(target - total - others[best][0]) < target - total):
        size, index = others.pop(best)
        chosen.append(index)
        total += size
    while abs(target - total) > slack and others:
        gain, position, best = max(
            (abs(target - total) - abs(target - total + sizes[index] - others[at][0]), position, at)
            for position, index in enumerate(chosen)
            for at in [_closest(others, target - total + sizes[index])]
        )
        if gain <= 0:
            break
        out, (size, index) = chosen[position], others.pop(best)
        total += size - sizes[out]
        chosen[position] = index
        others.insert(bisect_left(others, (sizes[out], out)), (sizes[out], out))
    return sorted(chosen)


def _closest(others: Sequence[tuple[int, int]], size: float) -> int:
    """The position of the size nearest to `size` among sorted ones."""
    after = bisect_left(others, (size, -1))
    near = [position for position in (after - 1, after) if 0 <= position < len(others)]
    return min(near, key=lambda position: abs(others[position][0] - size))


def _largest(parts: Sequence[Part], sizes: Sizes) -> Chosen:
    """The largest choice when every part has a share: the scarcest source gives all its rows."""
    whole = min(_all(sizes, part.source, part.unit) / part.share for part in parts if part.share)
    return {part.source: _near(part, sizes, (part.share or 0) * whole, whole) for part in parts}


def _beside(parts: Sequence[Part], sizes: Sizes) -> Chosen:
    """The choice beside parts that give every row. Its shares depend on one another: it is made anew until it stays."""
    shared = [part for part in parts if part.share is not None]
    left = 1 - sum(part.share or 0 for part in shared)
    chosen = {part.source: list(range(len(sizes[part.source]))) for part in parts if part.share is None}
    fixed = {unit: sum(_all(sizes, source, unit) for source in chosen) for unit in UNITS}
    for part in shared:
        whole = fixed[part.unit] / left
        chosen[part.source] = _near(part, sizes, (part.share or 0) * whole, whole)
    best = chosen
    for _ in range(20):
        before, chosen = chosen, dict(chosen)
        for part in shared:
            share = part.share or 0
            rest = sum(_taken(sizes, chosen, other.source, part.unit) for other in parts if other is not part)
            chosen[part.source] = _near(part, sizes, share / (1 - share) * rest, rest / (1 - share))
        if chosen == before:
            break
        best = min(best, chosen, key=lambda choice: max(abs(_off(part, parts, sizes, choice)) for part in shared))
    return best


def _near(part: Part, sizes: Sizes, target: float, whole: float) -> list[int]:
    return nearest([size[part.unit] for size in sizes[part.source]], target, slack=0.2 * TOLERANCE * whole)


def _missed(stage: Stage, sizes: Sizes, chosen: Chosen) -> Iterator[HarnessError]:
    for part in stage.parts:
        if part.share is None or abs(_off(part, stage.parts, sizes, chosen)) <= TOLERANCE + 1e-9:
            continue
        where, asked = f"stage {stage.name}", f"{100 * part.share:.1f} %"
        realised = part.share + _off(part, stage.parts, sizes, chosen)
        unit = part.unit.replace("_", " ")
        if len(chosen[part.source]) == len(sizes[part.source]) and realised < part.share:
            have = _all(sizes, part.source, part.unit)
            # Rounded down: what is said to be possible must be possible.
            most = int(1000 * realised) / 10
            what = f"{asked} of {part.source!r} cannot be met: with all its {have} {unit} at most {most} % is possible"
            yield HarnessError(where, what, "lower the share, add rows to it, or set a limit on the other sources")
        else:
            nearest_share = f"{100 * realised:.1f} %"
            what = f"{asked} of {part.source!r} in {unit} cannot be met: whole rows come no nearer than {nearest_share}"
            yield HarnessError(where, what, "use more rows in the stage, or shorter ones, or ask for that share")


def _off(part: Part, parts: Sequence[Part], sizes: Sizes, chosen: Chosen) -> float:
    """Realised share of a part less the one asked for."""
    whole = sum(_taken(sizes, chosen, other.source, part.unit) for other in parts)
    return _taken(sizes, chosen, part.source, part.unit) / whole - (part.share or 0)


def _all(sizes: Sizes, source: str, unit: Unit) -> int:
    return sum(size[unit] for size in sizes[source])


def _taken(sizes: Sizes, chosen: Chosen, source: str, unit: Unit) -> int:
    return sum(sizes[source][index][unit] for index in chosen[source])


def _sizes(row: Row) -> dict[Unit, int]:
    return {"rows": 1, "tokens": len(row.input_ids), "loss_tokens": row.loss_tokens}


def _check(stage: Stage) -> None:
    where = f"stage {stage.name}"
    sources = [part.source for part in stage.parts]
    for source in sources:
        if sources.count(source) > 1:
            raise HarnessError(where, f"the source {source!r} stands in it twice", "name it once")
    given = [part.share for part in stage.parts if part.share is not None]
    total = sum(given)
    if any(not 0 <= share <= 1 for share in given):
        raise HarnessError(where, "a share lies outside 0 to 1", "a share is of the final mixture, e.g. 0.1")
    if len(given) < len(stage.parts):
        if total >= 1:
            what = f"the shares sum to {total:.4g}, which leaves nothing for the sources without a share"
            raise HarnessError(where, what, "let them sum to less than 1")
        return
    if abs(total - 1) > 1e-6:
        what = f"every source has a share, and the shares sum to {total:.4g}"
        raise HarnessError(where, what, "let them sum to 1, or leave one source without a share: all its rows are used")
    if len({part.unit for part in stage.parts}) > 1:
        raise HarnessError(where, "every source has a share, in different units", "state all of them in one unit")
