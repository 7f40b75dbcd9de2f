"""Drop the rows that `checks` asks to drop: repeated rows, contaminated items, and the training rows that contaminate.

Every function changes a mapping in place, and returns a warning with the locations of the rows on the lines below.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from harness.data.checks.contamination import ContaminationIndex
from harness.data.reading.corpus import CorpusView
from harness.data.reading.splits import Split
from harness.errors import HarnessError
from harness.types import Progress

MAX_ROWS_NAMED = 100
"""Locations that a warning names."""


def drop_shared_rows(training_rows: dict[str, CorpusView], sources: Sequence[str]) -> list[str]:
    """Keep each row that several sources have in the first of them only, in place.

    Args:
        training_rows: Source -> its training rows, without duplicates.
        sources: The sources that stages train on, in their order.

    Raises:
        HarnessError: No row of a source is left.
    """
    warnings = []
    for position, name in enumerate(sources):
        for earlier in sources[:position]:
            rows = training_rows[name]
            repeated = np.isin(rows.content_hashes, training_rows[earlier].content_hashes)
            reason = f"are equal to rows of {earlier!r} and are dropped"
            warnings += _drop_rows(training_rows, name, repeated, reason, "remove the source")
    return warnings


def drop_trained_prompts(training_rows: dict[str, CorpusView], suites: Mapping[str, CorpusView]) -> list[str]:
    """Drop the training rows with a trained prompt that a suite evaluates, in place.

    Args:
        training_rows: Source -> its training rows.
        suites: Suite -> the rows that it may evaluate.

    Raises:
        HarnessError: No row of a source is left.
    """
    evaluated = np.unique(np.concatenate([np.empty(0, np.uint64), *(rows.prompt_hashes for rows in suites.values())]))
    warnings = []
    for name, rows in list(training_rows.items()):
        prompts, prompt_rows = rows.trained_prompt_hashes()
        is_shared = np.zeros(len(rows), bool)
        is_shared[prompt_rows[np.isin(prompts, evaluated)]] = True
        warnings += _drop_rows(training_rows, name, is_shared, "have an evaluated prompt and are dropped")
    return warnings


def drop_contaminating_rows(
    training_rows: dict[str, CorpusView],
    suites: Mapping[str, CorpusView],
    settings: Mapping[str, Any],
    progress: Progress,
) -> list[str]:
    """Drop the training rows that contaminate a suite until no item is contaminated, in place.

    Without these rows a common n-gram may be common no more, so the search is repeated.

    Args:
        training_rows: Source -> its training rows.
        suites: Suite -> the rows that it evaluates.
        settings: The spec's `checks.contamination`.
        progress: See `contamination.find_contamination`.

    Raises:
        HarnessError: No row of a source is left.
    """
    warnings: list[str] = []
    while True:
        found = _find_contaminating_rows(suites, training_rows, settings, progress)
        if not any(found.values()):
            return warnings
        for name, indices in found.items():
            is_found = np.isin(np.arange(len(training_rows[name])), indices)
            reason = "share their words with evaluated rows and are dropped"
            warnings += _drop_rows(training_rows, name, is_found, reason)


def drop_contaminated_items(
    suite_rows: dict[str, CorpusView],
    training_rows: Mapping[str, CorpusView],
    settings: Mapping[str, Any],
    progress: Progress,
) -> list[str]:
    """Remove the contaminated rows of all suites, in place.

    Raises:
        HarnessError: No row of a suite is left.
    """
    warnings = []
    for suite, items in _find_contaminated_items(suite_rows, training_rows, settings, progress).items():
        if not items:
            continue
        rows = suite_rows[suite]
        if len(items) == len(rows):
            what = f"all of its {len(rows)} rows are contaminated by training rows"
            raise HarnessError(f"evaluate.{suite}", what, "evaluate other rows, or remove the training rows")
        locations = [rows[index].location for index in items]
        suite_rows[suite] = rows.select(np.setdiff1d(np.arange(len(rows)), items))
        text = f"the suite {suite!r} is evaluated without {len(items)} of {len(rows)} rows, contaminated by training"
        warnings.append("\n".join([text, *locations]))
    return warnings


def shorten_splits(
    splits: Mapping[str, Split],
    training_rows: Mapping[str, CorpusView],
    reason: Literal["duplicates", "contaminating"],
) -> dict[str, Split]:
    """Return the splits of the training sources with the rows that are left; the others are counted by the reason."""
    return {
        name: replace(
            splits[name],
            training_indices=rows.indices,
            **{reason: getattr(splits[name], reason) + len(splits[name].training_indices) - len(rows)},
        )
        for name, rows in training_rows.items()
    }


def _drop_rows(
    training_rows: dict[str, CorpusView],
    name: str,
    is_dropped: NDArray[np.bool_],
    reason: str,
    hint: str = "add rows, or evaluate other rows",
) -> list[str]:
    """Drop rows of a source in place, and return a warning if there are any."""
    dropped, rows = np.flatnonzero(is_dropped), training_rows[name]
    if not len(dropped):
        return []
    text = f"{len(dropped):,} of {len(rows):,} training rows of {name!r} {reason}"
    if len(dropped) == len(rows):
        raise HarnessError(f"sources.{name}", f"all of its {len(rows):,} training rows {reason}", hint)
    locations = [rows.location_of(int(index)) for index in dropped[:MAX_ROWS_NAMED]]
    training_rows[name] = rows.select(np.flatnonzero(~is_dropped))
    return ["\n".join([text, *locations])]


def _find_contaminated_items(
    suites: Mapping[str, CorpusView],
    training: Mapping[str, CorpusView],
    settings: Mapping[str, Any],
    progress: Progress,
) -> dict[str, list[int]]:
    """Return suite -> the indices of its contaminated items. Responses count only if the spec limits them.

    Args:
        suites: Suite -> its rows.
        training: Source -> its rows, each read once, in order.
        settings: The spec's `checks.contamination`.
        progress: See `find_contamination`.
    """
    index = _index_training_rows(suites, training, settings, progress)
    return {
        name: sorted(
            {item for (_, item), _ in index.contaminated_sides(name, rows, settings["covered"], _sides(settings))}
        )
        for name, rows in suites.items()
    }


def _find_contaminating_rows(
    suites: Mapping[str, CorpusView],
    training: Mapping[str, CorpusView],
    settings: Mapping[str, Any],
    progress: Progress,
) -> dict[str, list[int]]:
    """Return source -> the indices of its rows that share a counted n-gram, or all words, with a contaminated item.

    The arguments are those of `_find_contaminated_items`.
    """
    index = _index_training_rows(suites, training, settings, progress)
    numbers = sorted(
        {
            row
            for name, rows in suites.items()
            for key, side in index.contaminated_sides(name, rows, settings["covered"], _sides(settings))
            for row in index.rows_shared_with(key, side)
        }
    )
    found: dict[str, list[int]] = {}
    begin = 0
    for name, source_rows in training.items():
        end = begin + len(source_rows)
        found[name] = [number - begin for number in numbers if begin <= number < end]
        begin = end
    return found


def _index_training_rows(
    suites: Mapping[str, CorpusView],
    training: Mapping[str, CorpusView],
    settings: Mapping[str, Any],
    progress: Progress,
) -> ContaminationIndex:
    index = ContaminationIndex(suites, settings["ngram"], settings["characters"], settings["common"])
    total = sum(map(len, training.values()))
    for name, rows in training.items():
        for done in index.scan_rows(name, rows):
            progress("search for held-out rows", done, total, name, "rows")
    return index


def _sides(settings: Mapping[str, Any]) -> Sequence[str]:
    """Return the sides of an item that the spec limits."""
    return ("prompt", "text") if settings["allowed_responses"] is None else ("prompt", "text", "response")
