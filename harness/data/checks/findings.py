"""What the wording of the data gives away: rows that repeat others, and held-out rows that stand in training.

Looks at conversations, so it is known before a model is loaded, and says which findings a run must not begin with.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import accumulate
from types import MappingProxyType
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from harness.data.checks.contamination import Contamination, Overlap, contamination
from harness.data.checks.near_duplicates import Near, across, near_duplicates
from harness.data.checks.words import joined
from harness.data.reading.corpus import View
from harness.errors import HarnessError
from harness.types import Example, Progress, silent
from harness.utils.formatting import above, one_line


@dataclass(frozen=True)
class Untrained:
    """The rows of one source that are left out so.

    rows: of the source that may be trained on. lost: of these, at `max_length`, the length at which most are lost.
    places: of the first ones lost at any length.
    """

    rows: int
    lost: int
    max_length: int
    places: tuple[str, ...]

    @property
    def share(self) -> float:
        """Lost rows / rows, in [0, 1]."""
        return self.lost / self.rows


SHOWN = 3


@dataclass(frozen=True)
class Shared:
    """Rows that stand word for word in two sources. examples: places of some of them, pair by pair."""

    sources: tuple[str, str]
    rows: int
    examples: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Findings:
    """What was found. near, contamination: None where the spec does not ask for them. untrained: see `find`.

    warnings: what a person should know, the rows named below, see `Plan.warnings`. failures: what a run must not begin
    with, the rows named.
    """

    shared: tuple[Shared, ...]
    near: Near | None
    contamination: Mapping[str, Contamination] | None
    warnings: tuple[str, ...]
    failures: tuple[HarnessError, ...]
    untrained: Mapping[str, Untrained] = field(default_factory=dict)

    def facts(self) -> dict[str, Any]:
        """The findings as plain data: `untrained`, `shared`, `near_duplicates`, `contamination`."""
        return {
            "untrained": {
                name: {**asdict(one), "places": list(one.places), "share": one.share}
                for name, one in self.untrained.items()
                if one.lost
            },
            "shared": [
                {"sources": list(one.sources), "rows": one.rows, "examples": list(map(list, one.examples))}
                for one in self.shared
            ],
            "near_duplicates": None if self.near is None else {**_plain(self.near), "share": self.near.share},
            "contamination": None
            if self.contamination is None
            else {name: _plain(one) for name, one in self.contamination.items()},
        }


def _plain(found: Near | Contamination) -> dict[str, Any]:
    return {**asdict(found), "worst": [asdict(one) for one in found.worst]}


def find(
    training: Mapping[str, Sequence[Example]],
    suites: Mapping[str, Sequence[Example]],
    settings: Mapping[str, Any],
    *,
    seed: int,
    untrained: Mapping[str, Untrained] = MappingProxyType({}),
    progress: Progress = silent,
) -> Findings:
    """Judge what truncation left out, and look for duplicates and contamination.

    training: source -> its rows that may be trained on, each content once. suites: suite -> the rows that it evaluates.
    settings: the spec's `checks`, filled. untrained: source -> its rows that are cut off before anything is trained.
    Reads the training rows in order, once for each kind of finding; of near duplicates the suspects again.
    """
    shared = tuple(_shared(training))
    near = given_away = None
    if settings["near_duplicates"] is not None:
        asked = settings["near_duplicates"]
        near = near_duplicates(
            Texts(training), threshold=asked["threshold"], limit=asked["rows"], seed=seed, progress=progress
        )
    if settings["contamination"] is not None:
        asked = settings["contamination"]
        options = {key: asked[key] for key in ("ngram", "characters", "common", "covered")}
        given_away = contamination(suites, training, **options, progress=progress)
    told: list[str | HarnessError] = [*_lost(untrained, settings["untrained"]), *_shared_rows(shared)]
    if near is not None:
        told += _near(near, settings["near_duplicates"])
    for name, one in (given_away or {}).items():
        told += _given_away(name, one, settings["contamination"])
    return Findings(
        shared,
        near,
        given_away,
        warnings=tuple(one for one in told if isinstance(one, str)),
        failures=tuple(one for one in told if isinstance(one, HarnessError)),
        untrained=untrained,
    )


class Texts(Sequence[tuple[str, str]]):
    """The rows of all sources in order as (place, text), without system messages: many rows have the same one."""

    def __init__(self, training: Mapping[str, Sequence[Example]]) -> None:
        self._parts = list(training.values())
        self._ends = list(accumulate(map(len, self._parts)))

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    @overload
    def __getitem__(self, index: int) -> tuple[str, str]: ...
    @overload
    def __getitem__(self, index: slice) -> list[tuple[str, str]]: ...
    def __getitem__(self, index: int | slice) -> tuple[str, str] | list[tuple[str, str]]:
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        if not 0 <= index < len(self):
            raise IndexError(index)
        part = bisect_right(self._ends, index)
        return _text(self._parts[part][index - (self._ends[part - 1] if part else 0)])

    def __iter__(self) -> Iterator[tuple[str, str]]:
        return (_text(example) for part in self._parts for example in part)


def _text(example: Example) -> tuple[str, str]:
    own = [message for message in example.messages if message.role != "system"]
    return example.place, joined(own or example.messages)


def _shared(training: Mapping[str, Sequence[Example]]) -> Iterator[Shared]:
    keys = {name: _keys(rows) for name, rows in training.items()}
    for one, other, left, right in across(keys):
        first = zip(left[:SHOWN].tolist(), right[:SHOWN].tolist(), strict=True)
        places = tuple((training[one][a].place, training[other][b].place) for a, b in first)
        yield Shared((one, other), len(left), places)


def _keys(rows: Sequence[Example]) -> NDArray[np.uint64]:
    """The content hash of each row, (N,): those that were noted while it was read, where they were."""
    return rows.keys if isinstance(rows, View) else np.array([int(row.id, 16) for row in rows], np.uint64)


# -- in words ---------------------------------------------------------------------------------------------------------


def _lost(found: Mapping[str, Untrained], allowed: float | None) -> Iterator[str | HarnessError]:
    for name, one in found.items():
        if not one.lost:
            continue
        where = f"sources.{name}"
        what = (
            f"{one.lost:,} of its {one.rows:,} training rows have no trained token within {one.max_length} tokens and "
            "are left out"
        )
        if allowed is None or one.share <= allowed:
            yield _below(f"{where}: {what}", one.places, one.lost)
        else:
            hint = "raise train.max_length, take these rows out or shorten their prompts, or raise checks.untrained "
            hint += f"({allowed:g}) to {above(one.share)}"
            yield HarnessError(where, f"{what}: {_named(one.places, one.lost)}", hint)


def _shared_rows(shared: Sequence[Shared]) -> Iterator[str]:
    for one in shared:
        head = f"{one.rows:,} row(s) stand in both {one.sources[0]!r} and {one.sources[1]!r}"
        yield _below(head, [f"{a} = {b}" for a, b in one.examples], one.rows)


def _near(near: Near, asked: Mapping[str, Any]) -> Iterator[str | HarnessError]:
    if near.examined < near.rows:
        yield (
            f"of {near.rows:,} training rows {near.examined:,}, chosen by the seed, were compared for near duplicates: "
            "a pair is seen only if both its rows are among them (checks.near_duplicates.rows)"
        )
    if not near.repeats:
        return
    pairs = [f"{pair.row} ≈ {pair.earlier} ({pair.similarity:.2f})" for pair in near.worst[:SHOWN]]
    what = f"{near.repeats:,} of {near.examined:,} training rows nearly repeat an earlier one"
    if asked["allowed"] is not None and near.share > asked["allowed"]:
        hint = f"take them out, or raise checks.near_duplicates.allowed ({asked['allowed']:g}) to {above(near.share)}"
        yield HarnessError("checks.near_duplicates", f"{what}: {_named(pairs, near.repeats)}", hint)
    else:
        yield _below(what, pairs, near.repeats)


def _given_away(suite: str, found: Contamination, asked: Mapping[str, Any]) -> Iterator[str | HarnessError]:
    where = f"evaluate.{suite}"
    for side, count, option in (
        (found.kind, found.prompts, "allowed"),
        ("response", found.responses, "allowed_responses"),
    ):
        if not count:
            continue
        pairs = [_pair(one) for one in found.worst if one.side == side][: min(SHOWN, count)]
        what = f"{count:,} of its {found.items:,} {side}s stand in training, in whole or for the most part"
        share, allowed = count / found.items, asked[option]
        if allowed is not None and share > allowed:
            hint = "take these rows out of one side"
            hint += f", or raise checks.contamination.{option} ({allowed:g}) to {above(share)}"
            yield HarnessError(where, f"{what}: {_named(pairs, count)}", hint)
        else:
            yield _below(f"{where}: {what}", pairs, count)


def _pair(one: Overlap) -> str:
    return f'{one.item} ~ {one.row} ("{one_line(one.text, 60)}")'


def _named(pairs: Sequence[str], count: int) -> str:
    return ", ".join(map(one_line, pairs)) + "".join(f" {more}" for more in _more(pairs, count))


def _below(head: str, pairs: Sequence[str], count: int) -> str:
    """The warning with what it is about below it, line by line."""
    return "\n".join([head, *map(one_line, pairs), *_more(pairs, count)])


def _more(pairs: Sequence[str], count: int) -> list[str]:
    return [f"and {count - len(pairs):,} more"] if count > len(pairs) else []
