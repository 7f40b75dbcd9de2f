"""Analyze the wording of the data: rows that repeat others, and held-out rows that are also in the training data.

This needs conversations only, so it runs before a model is loaded. The spec's `checks` decide which findings are
warnings and which stop a run.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import accumulate
from types import MappingProxyType
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from harness.data.checks.contamination import Contamination, Overlap, find_contamination
from harness.data.checks.conversation_text import conversation_text
from harness.data.checks.near_duplicates import NearDuplicateReport, cross_source_duplicates, find_near_duplicates
from harness.data.checks.plugin_checks import RowCheckResult
from harness.data.checks.rendered_rows import RenderedRows, find_rendered_rows
from harness.data.reading.corpus import CorpusView
from harness.errors import HarnessError
from harness.types import Example, Progress, no_progress
from harness.utils.formatting import one_line, round_up_share

MAX_ROWS_SHOWN = 3
"""Rows that a message names."""


@dataclass(frozen=True)
class FullyTruncatedRows:
    """The training rows of one source that truncation leaves without a trained token, so that they are dropped.

    Attributes:
        rows: Rows of the source that may be trained on.
        lost: Dropped rows at `max_length`.
        max_length: The length, in tokens, at which most rows are dropped.
        places: Locations of the first rows that are dropped at any length.
    """

    rows: int
    lost: int
    max_length: int
    places: tuple[str, ...]

    @property
    def share(self) -> float:
        """Dropped rows / rows, in [0, 1]."""
        return self.lost / self.rows


@dataclass(frozen=True)
class SharedRows:
    """Rows that are equal in two sources.

    Attributes:
        sources: The names of the sources.
        rows: The number of equal rows.
        examples: Locations of the first pairs.
    """

    sources: tuple[str, str]
    rows: int
    examples: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Findings:
    """The result of `analyze_data`.

    Attributes:
        shared_rows: Rows that are equal in two sources.
        near_duplicates: None if the spec disables this check.
        contamination: Suite -> its contamination; None if the spec disables this check.
        warnings: Messages for the user, each with the rows it names on the lines below; see `Plan.warnings`.
        failures: Errors that must stop a run, with the rows named.
        fully_truncated: Source -> its rows that truncation drops.
        rendered_rows: Source -> its rows that contain turn markers, if there are more than a few.
        check_results: The results of the checks of plugins.
    """

    shared_rows: tuple[SharedRows, ...]
    near_duplicates: NearDuplicateReport | None
    contamination: Mapping[str, Contamination] | None
    warnings: tuple[str, ...]
    failures: tuple[HarnessError, ...]
    fully_truncated: Mapping[str, FullyTruncatedRows] = field(default_factory=dict)
    rendered_rows: Mapping[str, RenderedRows] = field(default_factory=dict)
    check_results: tuple[RowCheckResult, ...] = ()

    def with_check_results(self, results: tuple[RowCheckResult, ...]) -> Findings:
        """Return the findings with those of the checks of plugins."""
        messages = [result.message() for result in results]
        warnings = [message for message in messages if isinstance(message, str)]
        failures = [message for message in messages if isinstance(message, HarnessError)]
        return replace(
            self,
            check_results=results,
            warnings=(*self.warnings, *warnings),
            failures=(*self.failures, *failures),
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the findings as plain data.

        Keys: `untrained`, `shared`, `rendered`, `near_duplicates`, `contamination`, and `plugins` (check -> source or
        suite -> its findings).
        """
        by_check: dict[str, dict[str, Any]] = {}
        for result in self.check_results:
            by_check.setdefault(result.check, {})[result.place] = result.to_dict()
        near_duplicates = contamination = None
        if self.near_duplicates is not None:
            near_duplicates = {**_report_to_dict(self.near_duplicates), "share": self.near_duplicates.share}
        if self.contamination is not None:
            contamination = {suite: _report_to_dict(report) for suite, report in self.contamination.items()}
        return {
            "untrained": {
                source: {**asdict(truncated), "places": list(truncated.places), "share": truncated.share}
                for source, truncated in self.fully_truncated.items()
                if truncated.lost
            },
            "shared": [
                {
                    "sources": list(shared.sources),
                    "rows": shared.rows,
                    "examples": [list(pair) for pair in shared.examples],
                }
                for shared in self.shared_rows
            ],
            "rendered": {
                source: {**asdict(rendered), "places": list(rendered.places)}
                for source, rendered in self.rendered_rows.items()
            },
            "near_duplicates": near_duplicates,
            "contamination": contamination,
            "plugins": by_check,
        }


def _report_to_dict(report: NearDuplicateReport | Contamination) -> dict[str, Any]:
    return {**asdict(report), "worst": [asdict(entry) for entry in report.worst]}


def analyze_data(
    training: Mapping[str, Sequence[Example]],
    suites: Mapping[str, Sequence[Example]],
    settings: Mapping[str, Any],
    *,
    seed: int,
    fully_truncated: Mapping[str, FullyTruncatedRows] = MappingProxyType({}),
    markers: Sequence[str] = (),
    progress: Progress = no_progress,
) -> Findings:
    """Look for equal rows, near duplicates and contamination, and compare all findings with the spec's limits.

    Each check reads the training rows once in order; the check for near duplicates reads candidate pairs again.

    Args:
        training: Source -> its rows that may be trained on, without duplicates.
        suites: Suite -> the rows that it evaluates.
        settings: The spec's `checks`, with defaults filled in.
        seed: The seed of the plan.
        fully_truncated: Source -> its rows that truncation drops.
        markers: Turn markers to search for, see `rendered_rows.turn_markers`.
        progress: Receives the phases of the checks, in rows.
    """
    shared_rows = tuple(_find_shared_rows(training))
    rendered_rows = find_rendered_rows(training, markers, progress)
    messages: list[str | HarnessError] = [
        *_rendered_row_warnings(rendered_rows),
        *_rendered_item_warnings(find_rendered_rows(suites, markers, progress)),
        *_truncation_messages(fully_truncated, settings["untrained"]),
        *_shared_row_warnings(shared_rows),
    ]
    near_duplicates = contamination = None
    if (near_settings := settings["near_duplicates"]) is not None:
        near_duplicates = find_near_duplicates(
            TextSequence(training),
            threshold=near_settings["threshold"],
            limit=near_settings["rows"],
            seed=seed,
            progress=progress,
        )
        messages += _near_duplicate_messages(near_duplicates, near_settings)
    if (contamination_settings := settings["contamination"]) is not None:
        options = {key: contamination_settings[key] for key in ("ngram", "characters", "common", "covered")}
        contamination = find_contamination(suites, training, **options, progress=progress)
        for suite, report in contamination.items():
            messages += _contamination_messages(suite, report, contamination_settings)
    return Findings(
        shared_rows,
        near_duplicates,
        contamination,
        warnings=tuple(message for message in messages if isinstance(message, str)),
        failures=tuple(message for message in messages if isinstance(message, HarnessError)),
        fully_truncated=fully_truncated,
        rendered_rows=rendered_rows,
    )


class TextSequence(Sequence[tuple[str, str]]):
    """The rows of all sources in order as (location, text).

    System messages are excluded, because many rows have the same one; a row of system messages alone keeps them.
    """

    def __init__(self, training: Mapping[str, Sequence[Example]]) -> None:
        self._sources = list(training.values())
        self._ends = list(accumulate(map(len, self._sources)))

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    @overload
    def __getitem__(self, index: int) -> tuple[str, str]: ...
    @overload
    def __getitem__(self, index: slice) -> list[tuple[str, str]]: ...
    def __getitem__(self, index: int | slice) -> tuple[str, str] | list[tuple[str, str]]:
        if isinstance(index, slice):
            return [self[row] for row in range(*index.indices(len(self)))]
        if not 0 <= index < len(self):
            raise IndexError(index)
        source = bisect_right(self._ends, index)
        return _location_and_text(self._sources[source][index - (self._ends[source - 1] if source else 0)])

    def __iter__(self) -> Iterator[tuple[str, str]]:
        return (_location_and_text(example) for rows in self._sources for example in rows)


def _location_and_text(example: Example) -> tuple[str, str]:
    messages = [message for message in example.messages if message.role != "system"]
    return example.location, conversation_text(messages or example.messages)


def _find_shared_rows(training: Mapping[str, Sequence[Example]]) -> Iterator[SharedRows]:
    content_hashes = {name: _content_hashes(rows) for name, rows in training.items()}
    for first, second, first_rows, second_rows in cross_source_duplicates(content_hashes):
        pairs = zip(first_rows[:MAX_ROWS_SHOWN].tolist(), second_rows[:MAX_ROWS_SHOWN].tolist(), strict=True)
        locations = tuple((training[first][a].location, training[second][b].location) for a, b in pairs)
        yield SharedRows((first, second), len(first_rows), locations)


def _content_hashes(rows: Sequence[Example]) -> NDArray[np.uint64]:
    """Return the content hash of each row, `(N,)`."""
    if isinstance(rows, CorpusView):
        return rows.content_hashes
    return np.array([int(row.id, 16) for row in rows], np.uint64)


# -- messages ---------------------------------------------------------------------------------------------------------


def _truncation_messages(
    fully_truncated: Mapping[str, FullyTruncatedRows], allowed: float | None
) -> Iterator[str | HarnessError]:
    for source, truncated in fully_truncated.items():
        if not truncated.lost:
            continue
        where = f"sources.{source}"
        what = (
            f"{truncated.lost:,} of its {truncated.rows:,} training rows have no trained token within "
            f"{truncated.max_length} tokens and are dropped"
        )
        if allowed is None or truncated.share <= allowed:
            yield _list_below(f"{where}: {what}", truncated.places, truncated.lost)
        else:
            hint = "raise train.max_length, shorten the prompts of these rows or remove them, or raise "
            hint += f"checks.untrained ({allowed:g}) to {round_up_share(truncated.share)}"
            yield HarnessError(where, f"{what}: {_join_examples(truncated.places, truncated.lost)}", hint)


def _rendered_row_warnings(rendered_rows: Mapping[str, RenderedRows]) -> Iterator[str]:
    for source, rendered in rendered_rows.items():
        head = (
            f"sources.{source}: {rendered.rendered:,} of its {rendered.rows:,} training rows contain "
            f"{rendered.marker!r} as text, which is trained letter by letter; if a chat template has rendered these "
            'rows, split them into "messages" of role and content; if only their ends have it, remove it from them'
        )
        yield _list_below(head, rendered.places, rendered.rendered)


def _rendered_item_warnings(rendered_rows: Mapping[str, RenderedRows]) -> Iterator[str]:
    for suite, rendered in rendered_rows.items():
        head = (
            f"evaluate.{suite}: {rendered.rendered:,} of its {rendered.rows:,} rows contain {rendered.marker!r} as "
            "text, so the model is asked, and its answer compared, with letters instead of the token; remove it, or "
            'split the rows into "messages"'
        )
        yield _list_below(head, rendered.places, rendered.rendered)


def _shared_row_warnings(shared_rows: Sequence[SharedRows]) -> Iterator[str]:
    for shared in shared_rows:
        head = f"{shared.rows:,} row(s) are in both {shared.sources[0]!r} and {shared.sources[1]!r}"
        yield _list_below(head, [f"{first} = {second}" for first, second in shared.examples], shared.rows)


def _near_duplicate_messages(report: NearDuplicateReport, settings: Mapping[str, Any]) -> Iterator[str | HarnessError]:
    if report.examined < report.rows:
        yield (
            f"only {report.examined:,} of {report.rows:,} training rows, chosen by the seed, were compared for near "
            "duplicates: a pair is found only if both rows are among them (raise checks.near_duplicates.rows)"
        )
    if not report.repeats:
        return
    pairs = [f"{pair.row} ≈ {pair.earlier} ({pair.similarity:.2f})" for pair in report.worst[:MAX_ROWS_SHOWN]]
    what = f"{report.repeats:,} of {report.examined:,} training rows nearly repeat an earlier one"
    if settings["allowed"] is not None and report.share > settings["allowed"]:
        hint = f"remove them, or raise checks.near_duplicates.allowed ({settings['allowed']:g}) "
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
        overlaps = [overlap for overlap in report.worst if overlap.side == side][: min(MAX_ROWS_SHOWN, count)]
        pairs = [_format_overlap(overlap) for overlap in overlaps]
        what = f"{count:,} of its {report.items:,} {side}s are in the training data, completely or for the most part"
        share, allowed = count / report.items, settings[option]
        if allowed is not None and share > allowed:
            hint = 'set checks.contamination.drop to true (or to "training"), remove these rows from one side, '
            hint += f"or raise checks.contamination.{option} ({allowed:g}) to {round_up_share(share)}"
            yield HarnessError(where, f"{what}: {_join_examples(pairs, count)}", hint)
        else:
            yield _list_below(f"{where}: {what}", pairs, count)


def _format_overlap(overlap: Overlap) -> str:
    return f'{overlap.item} ~ {overlap.row} ("{one_line(overlap.text, 60)}")'


def _join_examples(examples: Sequence[str], count: int) -> str:
    return ", ".join(map(one_line, examples)) + "".join(f" {note}" for note in _more_note(examples, count))


def _list_below(head: str, examples: Sequence[str], count: int) -> str:
    """Return a warning with its examples below it, one per line."""
    return "\n".join([head, *map(one_line, examples), *_more_note(examples, count)])


def _more_note(examples: Sequence[str], count: int) -> list[str]:
    return [f"and {count - len(examples):,} more"] if count > len(examples) else []
