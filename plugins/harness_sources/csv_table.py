"""Rows from CSV files whose first line names the columns."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path

from harness import HarnessError, Record, Source
from harness_sources.files import BadRows, decode, every, no_rows, reading, shown


class CsvTable(Source):
    """The rows of CSV files, every field as text. A place is `file:line`, the line on which the row begins.

    delimiter: one character. Quotes are doubled inside a quoted field; a quote out of place is an error.
    """

    def __init__(self, path: str | Sequence[str], delimiter: str) -> None:
        self.paths, self.delimiter = every(path), delimiter

    def records(self) -> Iterator[Record]:
        """Every row under its columns' names. Raises HarnessError for rows with too few or too many fields."""
        # A document in a field may be longer than the 128 KiB that the csv module allows by default.
        csv.field_size_limit(2**31 - 1)
        bad = BadRows()
        for path in self.paths:
            yield from _read(path, self.delimiter, bad)
        bad.raise_any()


def _read(path: Path, delimiter: str, bad: BadRows) -> Iterator[Record]:
    file, empty, begin = shown(path), True, 1
    with reading(path), path.open("rb") as lines:
        table = csv.reader(_text(file, lines), delimiter=delimiter, strict=True)
        try:
            columns = _columns(file, next(table, []), delimiter)
            begin = table.line_num + 1
            for fields in table:
                place, begin = f"{file}:{begin}", table.line_num + 1
                if not fields:  # a blank line
                    continue
                empty = False
                if len(fields) == len(columns):
                    yield Record(place, dict(zip(columns, fields, strict=True)))
                else:
                    what = f"has {len(fields)} fields where the header names {len(columns)}"
                    bad.add(file, place, what, f"put fields that hold {delimiter!r} or a line break in double quotes")
        except csv.Error as error:
            hint = "a double quote inside a quoted field is written twice"
            raise HarnessError(f"{file}:{begin}", f"is not CSV: {error}", hint) from None
    if empty:
        raise no_rows(path)


def _text(file: str, lines: Iterator[bytes]) -> Iterator[str]:
    for number, raw in enumerate(lines, 1):
        try:
            yield decode(raw, first=number == 1)
        except ValueError as error:
            raise HarnessError(f"{file}:{number}", str(error), "save the file as UTF-8") from None


def _columns(file: str, header: list[str], delimiter: str) -> list[str]:
    twice = sorted({name for name in header if header.count(name) > 1})
    if twice:
        raise HarnessError(f"{file}:1", f"the header names the column {twice[0]!r} twice", "rename one of them")
    if len(header) == 1 and any(other in header[0] for other in ",;\t|" if other != delimiter):
        what = f"the header has one column, {header[0]!r}, when split at {delimiter!r}"
        raise HarnessError(f"{file}:1", what, "set the source's option 'delimiter'")
    return header
