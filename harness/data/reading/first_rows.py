"""Read the first rows of local text files, to find missing files and wrong columns before anything is loaded."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any

from harness.data.reading.rejected_rows import InvalidRowLog
from harness.data.reading.source_reader import SourceReader
from harness.errors import ComponentError, HarnessError
from harness.interfaces.source import Source
from harness.types import InvalidRecord, Record, no_progress

NUM_ROWS = 20
"""Valid rows that are read."""
MAX_RECORDS = 1000
"""Raw rows after which reading ends, even if few of them are valid."""
TEXT_SOURCES = ("jsonl", "json", "csv")
"""Sources whose first rows are read in milliseconds."""


class _FirstRecords(Source):
    """The first `MAX_RECORDS` rows of another source."""

    def __init__(self, source: Source) -> None:
        self._source = source

    def records(self) -> Iterator[Record | InvalidRecord]:
        return islice(self._source.records(), MAX_RECORDS)


def first_row_errors(name: str, source: Source, options: Mapping[str, Any]) -> Iterator[HarnessError]:
    """Yield what is wrong with the first rows of a source, as reading all of it would.

    With a `filter` only the file itself is checked: its first rows may be dropped. Where the source allows invalid rows
    (`rejected`), none is an error.

    Args:
        name: The name of the source.
        source: Yields the raw rows.
        options: The source's options, with all defaults.
    """
    log = InvalidRowLog(None)
    try:
        if options["filter"]:
            next(iter(source.records()), None)
            return
        reader = SourceReader(_FirstRecords(source), options, name, log, no_progress)
        for _ in islice(reader.iter_examples(), NUM_ROWS):
            pass
    except ComponentError:
        raise
    except HarnessError as error:
        yield error
        return
    if not options["rejected"]:
        yield from log.first_errors


def reads_local_text(kind: str, options: Mapping[str, Any]) -> bool:
    """Return whether a source reads text files of this machine.

    Args:
        kind: The source's component.
        options: Its options; `path` is a path, a list of paths, or of another type for other sources.
    """
    paths = options.get("path")
    paths = [paths] if isinstance(paths, str) else paths
    return (
        kind in TEXT_SOURCES
        and isinstance(paths, list)
        and all(isinstance(path, str) and "://" not in path for path in paths)
    )
