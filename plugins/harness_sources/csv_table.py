"""Rows from CSV files whose first line names the columns. Every value is text."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from harness import HarnessError, InvalidRecord, Record, Source
from harness_sources.files import SourceFiles, decode_utf8, display_path, no_rows_error


class CsvSource(Source):
    """The rows of CSV files as RFC 4180 has them. A place is `file:line`, the line that the row begins on.

    delimiter: one character. A field may hold line breaks inside double quotes.
    """

    def __init__(self, path: str | Sequence[str], storage: Mapping[str, Any], delimiter: str) -> None:
        self.files, self.delimiter = SourceFiles(path, storage), delimiter

    def records(self) -> Iterator[Record | InvalidRecord]:
        """Every row under its columns' names; one with too few or too many fields, or not in UTF-8, is a bad row.

        Raises HarnessError from the line on where a file is no CSV.
        """
        # A document in a field may be longer than the 128 KiB that the csv module allows by default.
        csv.field_size_limit(2**31 - 1)
        for path in self.files:
            with self.files.open(path) as lines:
                yield from _parse_rows(path, lines, self.delimiter)


def _parse_rows(path: str, lines: Iterable[bytes], delimiter: str) -> Iterator[Record | InvalidRecord]:
    file, empty, begin = display_path(path), True, 1
    text = _Utf8Lines(lines)
    table = csv.reader(text, delimiter=delimiter, strict=True)
    try:
        header = next(table, None)
        if header is None:
            raise no_rows_error(path)
        columns = _validate_header(file, header, delimiter)
        if text.utf8_error:
            raise HarnessError(f"{file}:1", text.utf8_error, "save the file as UTF-8")
        begin = table.line_num + 1
        for fields in table:
            place, begin = f"{file}:{begin}", table.line_num + 1
            if not fields:  # a blank line
                continue
            empty = False
            if text.utf8_error:
                raw = delimiter.join(fields).encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
                yield InvalidRecord(place, text.utf8_error, "save the file as UTF-8", raw)
                text.utf8_error = ""
            elif len(fields) == len(columns):
                yield Record(place, dict(zip(columns, fields, strict=True)))
            else:
                what = f"has {len(fields)} fields where the header names {len(columns)}"
                yield InvalidRecord(
                    place, what, f"put fields that hold {delimiter!r} or a line break in double quotes", fields
                )
    except csv.Error as error:
        hint = "a double quote inside a quoted field is written twice"
        raise HarnessError(f"{file}:{begin}", f"is not CSV: {error}", hint) from None
    if empty:
        raise no_rows_error(path)


class _Utf8Lines:
    """The lines of a file as text. wrong: what is not UTF-8 in those read since it was last made blank."""

    def __init__(self, lines: Iterable[bytes]) -> None:
        self.lines = enumerate(lines, 1)
        self.utf8_error = ""

    def __iter__(self) -> Iterator[str]:
        for number, raw in self.lines:
            try:
                yield decode_utf8(raw, is_file_start=number == 1)
            except ValueError as error:
                # The table goes on below: only the row that this line is part of is bad.
                self.utf8_error = self.utf8_error or str(error)
                yield raw.decode("utf-8", "surrogateescape")


def _validate_header(file: str, header: list[str], delimiter: str) -> list[str]:
    if not header:
        raise HarnessError(
            f"{file}:1", "the first line is blank, and it is to name the columns", "begin with their names"
        )
    twice = sorted({name for name in header if header.count(name) > 1})
    if twice:
        raise HarnessError(f"{file}:1", f"the header names the column {twice[0]!r} twice", "rename one of them")
    if len(header) == 1 and any(other in header[0] for other in ",;\t|" if other != delimiter):
        what = f"the header has one column, {header[0]!r}, when split at {delimiter!r}"
        raise HarnessError(f"{file}:1", what, "set the source's option 'delimiter'")
    return header
