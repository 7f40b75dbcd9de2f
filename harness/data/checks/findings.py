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

from harness.data.checks.contamination import Contamination, Overlap, find_contamination
from harness.data.checks.near_duplicates import NearDuplicateReport, cross_source_duplicates, find_near_duplicates
from harness.data.checks.words import conversation_text
from harness.data.reading.corpus import CorpusView
from harness.errors import HarnessError
from harness.types import Example, Progress, no_progress
from harness.utils.formatting import one_line, round_up_share


@dataclass(frozen=True)
class FullyTruncatedRows:
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


MAX_ROWS_SHOWN = 3


@dataclass(frozen=True)
class SharedRows:
    """Rows that stand word for word in two sources. examples: places of some of them, pair by pair."""

    sources: tuple[str, str]
    rows: int
    examples: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Findings:
    """What was found. near, contamination: None where the spec does not ask for them. untrained: see `analyze_data`.

    warnings: what a person should know, the rows named below, see `Plan.warnings`. failures: what a run must not begin
    with, the rows named.
    """

    shared_rows: tuple[SharedRows, ...]
    near_duplicates: NearDuplicateReport | None
    contamination: Mapping[str, Contamination] | None
    warnings: tuple[str, ...]
    failures: tuple[HarnessError, ...]
    fully_truncated: Mapping[str, FullyTruncatedRows] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """The findings as plain data: `untrained`, `shared`, `near_duplicates`, `contamination`."""
        return {
            "untrained": {
                name: {**asdict(one), "places": list(one.places), "share": one.share}
                for name, one in self.fully_truncated.items()
                if one.lost
            },
            "shared": [
                {"sources": list(one.sources), "rows": one.rows, "examples": list(map(list, one.examples))}
                for one in self.shared_rows
            ],
            "near_duplicates": None
            if self.near_duplicates is None
            else {**_report_to_dict(self.near_duplicates), "share": self.near_duplicates.share},
            "contamination": None
            if self.contamination is None
            else {name: _report_to_dict(one) for name, one in self.contamination.items()},
        }


def _report_to_dict(report: NearDuplicateReport | Contamination) -> dict[str, Any]:
    return {**asdict(report), "worst": [asdict(one) for one in report.worst]}


def analyze_data(
    training: Mapping[str, Sequence[Example]],
    suites: Mapping[str, Sequence[Example]],
    settings: Mapping[str, Any],
    *,
    seed: int,
    fully_truncated: Mapping[str, FullyTruncatedRows] = MappingProxyType({}),
    progress: Progress = no_progress,
) -> Findings:
    """Judge what truncation left out, and look for duplicates and contamination.

    training: source -> its rows that may be trained on, each content once. suites: suite -> the rows that it evaluates.
    settings: the spec's `checks`, filled. untrained: source -> its rows that are cut off before anything is trained.
    Reads the training rows in order, once for each kind of finding; of near duplicates the suspects again.
    """
    shared = tuple(_find_shared_rows(training))
    near = given_away = None
    if settings["near_duplicates"] is not None:
        asked = settings["near_duplicates"]
        near = find_near_duplicates(
            TextSequence(training), threshold=asked["threshold"], limit=asked["rows"], seed=seed, progress=progress
        )
    if settings["contamination"] is not None:
        asked = settings["contamination"]
        options = {key: asked[key] for key in ("ngram", "characters", "common", "covered")}
        given_away = find_contamination(suites, training, **options, progress=progress)
    told: list[str | HarnessError] = [
        *_truncation_messages(fully_truncated, settings["untrained"]),
        *_shared_row_warnings(shared),
    ]
    if near is not None:
        told += _near_duplicate_messages(near, settings["near_duplicates"])
    for name, one in (given_away or {}).items():
        told += _contamination_messages(name, one, settings["contamination"])
    return Findings(
        shared,
        near,
        given_away,
        warnings=tuple(one for one in told if isinstance(one, str)),
        failures=tuple(one for one in told if isinstance(one, HarnessError)),
        fully_truncated=fully_truncated,
    )


class TextSequence(Sequence[tuple[str, str]]):
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
        return _location_and_text(self._parts[part][index - (self._ends[part - 1] if part else 0)])

    def __iter__(self) -> Iterator[tuple[str, str]]:
        return (_location_and_text(example) for part in self._parts for example in part)


def _location_and_text(example: Example) -> tuple[str, str]:
    own = [message for message in example.messages if message.role != "system"]
    return example.location, conversation_text(own or example.messages)


def _find_shared_rows(training: Mapping[str, Sequence[Example]]) -> Iterator[SharedRows]:
    keys = {name: _content_hashes(rows) for name, rows in training.items()}
    for one, other, left, right in cross_source_duplicates(keys):
        first = zip(left[:MAX_ROWS_SHOWN].tolist(), right[:MAX_ROWS_SHOWN].tolist(), strict=True)
        places = tuple((training[one][a].location, training[other][b].location) for a, b in first)
        yield SharedRows((one, other), len(left), places)


def _content_hashes(rows: Sequence[Example]) -> NDArray[np.uint64]:
    """The content hash of each row, (N,): those that were noted while it was read, where they were."""
    return (
        rows.content_hashes if isinstance(rows, CorpusView) else np.array([int(row.id, 16) for row in rows], np.uint64)
    )


# -- in words ---------------------------------------------------------------------------------------------------------


def _truncation_messages(
    fully_truncated: Mapping[str, FullyTruncatedRows], allowed: float | None
) -> Iterator[str | HarnessError]:
    for name, one in fully_truncated.items():
        if not one.lost:
            continue
        where = f"sources.{name}"
        what = (
            f"{one.lost:,} of its {one.rows:,} training rows have no trained token within {one.max_length} tokens and "
            "are left out"
        )
        if allowed is None or one.share <= allowed:
            yield _list_below(f"{where}: {what}", one.places, one.lost)
        else:
            hint = "raise train.max_length, take these rows out or shorten their prompts, or raise checks.untrained "
            hint += f"({allowed:g}) to {round_up_share(one.share)}"
            yield HarnessError(where, f"{what}: {_join_examples(one.places, one.lost)}", hint)


def _shared_row_warnings(shared_rows: Sequence[SharedRows]) -> Iterator[str]:
    for one in shared_rows:
        head = f"{one.rows:,} row(s) stand in both {one.sources[0]!r} and {one.sources[1]!r}"
        yield _list_below(head, [f"{a} = {b}" for a, b in one.examples], one.rows)


def _near_duplicate_messages(report: NearDuplicateReport, settings: Mapping[str, Any]) -> Iterator[str | HarnessError]:
    if report.examined < report.rows:
        yield (
            f"of {report.rows:,} training rows {report.examined:,}, chosen by the seed, were compared for near "
            "duplicates: a pair is seen only if both its rows are among them (checks.near_duplicates.rows)"
        )
    if not report.repeats:
        return
    pairs = [f"{pair.row} ≈ {pair.earlier} ({pair.similarity:.2f})" for pair in report.worst[:MAX_ROWS_SHOWN]]
    what = f"{report.repeats:,} of {report.examined:,} training rows nearly repeat an earlier one"
    if settings["allowed"] is not None and report.share > settings["allowed"]:
        hint = f"take them out, or raise checks.near_duplicates.allowed ({settings['allowed']:g}) "
        hint += f"to {round_up_share(report.share)}"
        yield HarnessError("checks.near_duplicates", f"{what}: {_join_examples(pairs, report.repeats)}", hint)
    else:
        yield _list_below(what, pairs, report.repeats)


def _contamination_messages(
    suite: str, report: Contamination, settings: Mapping[str, Any]
) -> Iterator[str | HarnessError]:
    where = f"evaluate.{suite}"
    for side, count, option in (
        (report.kind, report.prompts, "allowed"),
        ("response", report.responses, "allowed_responses"),
    ):
        if not count:
            continue
        pairs = [_format_overlap(one) for one in report.worst if one.side == side][: min(MAX_ROWS_SHOWN, count)]
        what = f"{count:,} of its {report.items:,} {side}s stand in training, in whole or for the most part"
        share, allowed = count / report.items, settings[option]
        if allowed is not None and share > allowed:
            hint = "take these rows out of one side"
            hint += f", or raise checks.contamination.{option} ({allowed:g}) to {round_up_share(share)}"
            yield HarnessError(where, f"{what}: {_join_examples(pairs, count)}", hint)
        else:
            yield _list_below(f"{where}: {what}", pairs, count)


def _format_overlap(overlap: Overlap) -> str:
    return f'{overlap.item} ~ {overlap.row} ("{one_line(overlap.text, 60)}")'


def _join_examples(examples: Sequence[str], count: int) -> str:
    return ", ".join(map(one_line, examples)) + "".join(f" {more}" for more in _more_note(examples, count))


def _list_below(head: str, examples: Sequence[str], count: int) -> str:
    """The warning with what it is about below it, line by line."""
    return "\n".join([head, *map(one_line, examples), *_more_note(examples, count)])


def _more_note(examples: Sequence[str], count: int) -> list[str]:
    return [f"and {count - len(examples):,} more"] if count > len(examples) else []
