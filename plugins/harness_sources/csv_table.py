"""Rows from CSV files whose first line names the columns. Every value is text."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, BinaryIO

from harness import Component, ComponentExample, HarnessError, InvalidRecord, Record, Source
from harness_sources.files import (
    MAX_ROW_BYTES,
    ROW_TOO_LARGE,
    UTF_16_MARKS,
    SourceFiles,
    decode_utf8,
    display_path,
    file_options,
    iter_lines,
    no_rows_error,
)

COMPONENTS: dict[str, Component] = {
    "csv": Component(
        summary="Reads rows from a CSV file whose first line names the columns.",
        factory="harness_sources.csv_table:CsvSource",
        options=file_options(
            "A CSV file, plain or compressed with gzip or zstd",
            delimiter={
                "type": "string",
                "minLength": 1,
                "maxLength": 1,
                "default": ",",
                "description": 'The character between two fields, e.g. ";" or "\\t".',
            },
            encoding={
                "type": ["string", "null"],
                "minLength": 1,
                "default": None,
                "description": 'The encoding of the files, e.g. "cp1252" or "gbk". null: UTF-8, or UTF-16 by its byte '
                "order mark.",
            },
        ),
        required=("path",),
        example=ComponentExample({"path": "rows.csv"}, {"rows.csv": "a,b\n1,2\n3,4\n"}, rows=2),
    ),
}


HINT_ENCODING = 'save the file as UTF-8, or name its encoding, e.g. "encoding": "cp1252" (or "gbk")'


class CsvSource(Source):
    """The rows of CSV files (RFC 4180). A location is `file:line`, the first line of the row."""

    def __init__(
        self, path: str | Sequence[str], storage: Mapping[str, Any], delimiter: str, encoding: str | None
    ) -> None:
        """Create the source.

        Args:
            path: See `SourceFiles`.
            storage: See `SourceFiles`.
            delimiter: One character. A field in double quotes may contain it, and line breaks.
            encoding: The encoding of the files; None: UTF-8, or UTF-16 by its byte order mark.

        Raises:
            HarnessError: There is no such encoding.
        """
        self.files, self.delimiter, self.encoding = SourceFiles(path, storage), delimiter, encoding
        try:
            "".encode(encoding or "utf-8")
        except LookupError:
            hint = 'write one of Python\'s names, e.g. "cp1252", "gbk", "shift_jis" or "utf-16"'
            raise HarnessError("encoding", f"there is no text encoding {encoding!r}", hint) from None

    def records(self) -> Iterator[Record | InvalidRecord]:
        """Yield every row as column -> text. A row with a wrong number of fields, or not in UTF-8, is invalid.

        Raises:
            HarnessError: A file is not CSV; the error names the line.
        """
        # A document in a field may be longer than the 128 KiB that the csv module allows by default.
        csv.field_size_limit(MAX_ROW_BYTES)
        for path in self.files:
            with self.files.open(path, any_encoding=True) as stream:
                encoding = self.encoding or _encoding_by_mark(stream)
                lines = iter_lines(stream) if encoding is None else _transcode_lines(path, stream, encoding)
                yield from _parse_rows(path, lines, self.delimiter)


def _encoding_by_mark(stream: BinaryIO) -> str | None:
    """Return the encoding that a file's byte order mark names; None for UTF-8."""
    first_bytes = stream.peek(4)  # type: ignore[attr-defined]
    if first_bytes.startswith((b"\xff\xfe\x00\x00", b"\x00\x00\xfe\xff")):
        return "utf-32"
    return "utf-16" if first_bytes.startswith(UTF_16_MARKS) else None


def _transcode_lines(path: str, stream: BinaryIO, encoding: str) -> Iterator[bytes]:
    """Yield the lines of a file in UTF-8. Raises HarnessError when it is not in the encoding."""
    text = io.TextIOWrapper(stream, encoding, newline="\n")
    try:
        for line in text:
            yield line.encode("utf-8", "surrogatepass")
    except UnicodeError as error:
        hint = 'set the source\'s option "encoding" to the one that the file was saved in'
        raise HarnessError(display_path(path), f"is not {encoding}: {error}", hint) from None
    finally:
        text.detach()  # the caller closes the stream


def _parse_rows(path: str, lines: Iterable[bytes | None], delimiter: str) -> Iterator[Record | InvalidRecord]:
    file, has_rows, first_line = display_path(path), False, 1
    text_lines = _Utf8Lines(lines)
    reader = csv.reader(text_lines, delimiter=delimiter, strict=True)
    try:
        header = next(reader, None)
        if header is None:
            raise no_rows_error(path)
        columns = _validate_header(file, header, delimiter)
        if text_lines.utf8_error:
            raise HarnessError(f"{file}:1", text_lines.utf8_error, HINT_ENCODING)
        first_line = reader.line_num + 1
        for fields in reader:
            location, first_line = f"{file}:{first_line}", reader.line_num + 1
            if not fields:  # a blank line
                continue
            has_rows = True
            if text_lines.utf8_error:
                raw = delimiter.join(fields).encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
                yield InvalidRecord(location, text_lines.utf8_error, HINT_ENCODING, raw)
                text_lines.utf8_error = ""
            elif len(fields) == len(columns):
                yield Record(location, dict(zip(columns, fields, strict=True)))
            else:
                what = f"has {len(fields)} fields, but the header names {len(columns)}"
                hint = f"put fields that contain {delimiter!r} or a line break in double quotes"
                yield InvalidRecord(location, what, hint, fields)
    except csv.Error as error:
        if "field larger than" in str(error):
            raise HarnessError(f"{file}:{first_line}", f"the row {ROW_TOO_LARGE[0]}", ROW_TOO_LARGE[1]) from None
        hint = "a double quote inside a quoted field is written twice"
        raise HarnessError(f"{file}:{first_line}", f"is not CSV: {error}", hint) from None
    if not has_rows:
        raise no_rows_error(path)


class _Utf8Lines:
    """The lines of a file as text.

    Attributes:
        utf8_error: What is not UTF-8 in the lines read since the caller last reset it.
    """

    def __init__(self, lines: Iterable[bytes | None]) -> None:
        self.lines = enumerate(lines, 1)
        self.utf8_error = ""

    def __iter__(self) -> Iterator[str]:
        for line_number, raw in self.lines:
            if raw is None:
                raise csv.Error("field larger than a row may be")
            try:
                yield decode_utf8(raw, is_file_start=line_number == 1)
            except ValueError as error:
                # Reading continues: only the row with this line is invalid.
                self.utf8_error = self.utf8_error or str(error)
                yield raw.decode("utf-8", "surrogateescape")


def _validate_header(file: str, header: list[str], delimiter: str) -> list[str]:
    """Return the column names, or raise HarnessError for a header that is blank, ambiguous or not split."""
    if not header:
        raise HarnessError(f"{file}:1", "the first line is blank", "write the column names there")
    repeated = sorted({name for name in header if header.count(name) > 1})
    if repeated:
        raise HarnessError(f"{file}:1", f"the header names the column {repeated[0]!r} twice", "rename one of them")
    if len(header) == 1 and any(other in header[0] for other in ",;\t|" if other != delimiter):
        what = f"the header has one column, {header[0]!r}, when split at {delimiter!r}"
        raise HarnessError(f"{file}:1", what, "set the source's option 'delimiter'")
    return header
