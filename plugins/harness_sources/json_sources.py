"""Rows from JSONL files and from JSON files.

A JSON array is read item by item, so that its file may have any size. This module parses the JSON grammar around the
items; the json module parses each item.
"""

from __future__ import annotations

import codecs
import json
import re
from codecs import BOM_UTF8
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, BinaryIO

from harness import Component, ComponentExample, HarnessError, InvalidRecord, Record, Source
from harness.utils.json_depth import HINT_NESTING, NESTED_TOO_DEEP, JsonDepthError
from harness.utils.json_files import StrictJsonDecoder, duplicate_key_error
from harness_sources.files import (
    INTEGER_TOO_LONG,
    MAX_ROW_BYTES,
    ROW_TOO_LARGE,
    SourceFiles,
    decode_utf8,
    display_path,
    escape_invalid_utf8,
    file_options,
    iter_lines,
    no_rows_error,
)

COMPONENTS: dict[str, Component] = {
    "jsonl": Component(
        summary="Reads rows from a file with one JSON object per line.",
        factory="harness_sources.json_sources:JsonlSource",
        options=file_options("A JSONL file, plain or compressed with gzip or zstd"),
        required=("path",),
        example=ComponentExample({"path": "rows.jsonl"}, {"rows.jsonl": '{"a": 1}\n{"a": 2}\n'}, rows=2),
    ),
    "json": Component(
        summary="Reads rows from a JSON file: an array of objects, or an object with one array of objects.",
        factory="harness_sources.json_sources:JsonSource",
        options=file_options("A JSON file, plain or compressed with gzip or zstd"),
        required=("path",),
        example=ComponentExample({"path": "rows.json"}, {"rows.json": '[{"a": 1}, {"a": 2}]'}, rows=2),
    ),
}

BLOCK_SIZE = 1 << 18
"""Bytes read at once; more where one item is longer."""

MAX_OBJECT_BYTES = 1_000_000_000
"""A file whose rows are within an object is read at once, and has at most so many bytes."""

TRUNCATION_MARGIN = 16
"""A syntax error within this many characters of the window's end may only mean that the item is not complete yet."""

PYTHON_OBJECT = re.compile(r"\{\s*'")

TABLE_OF_COLUMNS = "is a table by columns, as pandas' to_json writes it, not rows"
HINT_PANDAS = "write it with df.to_json(path, orient='records', lines=True) and use the source 'jsonl'"
_HINT_INTEGER = "write the number as text"
_match_whitespace = re.compile(r"[ \t\n\r]*").match


class JsonlSource(Source):
    """The objects of JSONL files, in order. A location is `file:line`."""

    def __init__(self, path: str | Sequence[str], storage: Mapping[str, Any]) -> None:
        """Create the source; see `SourceFiles` for path and storage."""
        self.files = SourceFiles(path, storage)

    def records(self) -> Iterator[Record | InvalidRecord]:
        """Yield every object with its line. A line without an object, or with a repeated key, is invalid."""
        decoder = StrictJsonDecoder()
        for path in self.files:
            has_rows = False
            with self.files.open(path) as lines:
                file = display_path(path)
                for line_number, raw in enumerate(iter_lines(lines), 1):
                    if raw is None:
                        has_rows = True
                        yield InvalidRecord(f"{file}:{line_number}", *ROW_TOO_LARGE, None)
                        continue
                    if raw.isspace() or raw.strip() == BOM_UTF8:
                        continue
                    has_rows = True
                    yield _parse_line(raw, decoder, f"{file}:{line_number}")
            if not has_rows:
                raise no_rows_error(path)


def _parse_line(raw: bytes, decoder: StrictJsonDecoder, location: str) -> Record | InvalidRecord:
    try:
        # Where several files were concatenated, lines in the middle begin with a byte order mark too.
        text = decode_utf8(raw, is_file_start=False).removeprefix("\ufeff")
    except ValueError as error:
        return InvalidRecord(location, str(error), "save the file as UTF-8", escape_invalid_utf8(raw))
    try:
        row = decoder.decode(text)
    except JsonDepthError:
        return InvalidRecord(location, f"cannot be read: {NESTED_TOO_DEEP}", HINT_NESTING, text)
    except json.JSONDecodeError as error:
        return InvalidRecord(location, *_syntax_error(text, error), text)
    except ValueError:  # Python refuses longer integers, whose conversion is slow
        return InvalidRecord(location, INTEGER_TOO_LONG, _HINT_INTEGER, text)
    if decoder.duplicate_key is not None:
        return InvalidRecord(location, *duplicate_key_error(decoder.duplicate_key), text)
    if isinstance(row, dict):
        if is_table_of_columns(row):
            return InvalidRecord(location, TABLE_OF_COLUMNS, HINT_PANDAS, row)
        return Record(location, row)
    if isinstance(row, list):
        hint = "for one JSON array in a file use the source 'json'"
        return InvalidRecord(location, "is an array, not an object", hint, text)
    return InvalidRecord(location, f"is the value {json.dumps(row)[:40]}, not an object", "fix the line", text)


def _syntax_error(text: str, error: json.JSONDecodeError) -> tuple[str, str]:
    """Return what is wrong with a line that is not JSON, and the remedy."""
    line = text.strip()
    if error.msg == "Extra data" and text[error.pos :].strip() == ",":
        hint = "remove the comma at the end of each line, or put the lines in [ ] and use the source 'json'"
        return "has a comma after its object", hint
    if PYTHON_OBJECT.match(line):
        return "is an object of Python, not JSON", "write each line with json.dumps(row) instead of str(row)"
    what = f"is not JSON: {error.msg} at column {error.colno}"
    return what, "write one JSON object per line; for JSON over several lines use the source 'json'"


def is_table_of_columns(row: Mapping[str, Any]) -> bool:
    """Return whether an object maps each column to its cells by index, as pandas writes a complete table."""
    cells = list(row.values())
    return bool(cells) and all(
        isinstance(cell, dict) and "0" in cell and cell.keys() == cells[0].keys() for cell in cells
    )


class JsonSource(Source):
    """The objects of JSON files: those of the file's array, or of the only array in the file's object.

    A location is `file:[index]`, from 0. An array is read item by item, an object at once.
    """

    def __init__(self, path: str | Sequence[str], storage: Mapping[str, Any]) -> None:
        """Create the source; see `SourceFiles` for path and storage."""
        self.files = SourceFiles(path, storage)

    def records(self) -> Iterator[Record | InvalidRecord]:
        """Yield every object with its index. Another item, or one with a repeated key, is invalid.

        Raises:
            HarnessError: A file has no array of rows.
        """
        for path in self.files:
            file, index = display_path(path), -1
            with self.files.open(path) as stream:
                for index, (row, duplicate_key) in enumerate(_iter_items(file, path, stream)):
                    location = f"{file}:[{index}]"
                    if duplicate_key is not None:
                        yield InvalidRecord(location, *duplicate_key_error(duplicate_key), row)
                    elif isinstance(row, dict):
                        yield Record(location, row)
                    else:
                        what = f"is {json.dumps(row)[:40]}, not an object"
                        yield InvalidRecord(location, what, "fix the row", row)
            if index < 0:
                raise no_rows_error(path)


def _iter_items(file: str, path: str, stream: BinaryIO) -> Iterator[tuple[Any, str | None]]:
    """Yield the items, each with a key that is repeated in one of its objects, or None."""
    first_bytes = b""
    while not first_bytes.removeprefix(BOM_UTF8).strip():
        block = stream.read(1 << 16)
        if not block:
            raise no_rows_error(path)
        first_bytes += block
    if first_bytes.removeprefix(BOM_UTF8).lstrip()[:1] == b"[":
        yield from iter_array_items(file, first_bytes, stream)
        return
    document = _parse_document(file, first_bytes + _read_bounded(file, stream))
    if not isinstance(document, dict):
        raise HarnessError(file, "is not an array of objects", "write one array of objects into the file")
    if is_table_of_columns(document):
        raise HarnessError(file, TABLE_OF_COLUMNS, HINT_PANDAS)
    arrays = [value for value in document.values() if isinstance(value, list)]
    if len(arrays) != 1:
        what = f"is an object with {len(arrays)} arrays, so it is not clear which one has the rows"
        raise HarnessError(file, what, "keep one array of objects in the file")
    yield from ((row, None) for row in arrays[0])


def _read_bounded(file: str, stream: BinaryIO) -> bytes:
    raw = stream.read(MAX_OBJECT_BYTES + 1)
    if len(raw) > MAX_OBJECT_BYTES:
        what = f"is one object of more than {MAX_OBJECT_BYTES // 1_000_000} MB"
        raise HarnessError(file, what, "write its rows as an array, or one per line for the source 'jsonl'")
    return raw


def _parse_document(file: str, raw: bytes) -> Any:
    try:
        text = decode_utf8(raw, is_file_start=True)
    except ValueError as error:
        raise HarnessError(f"{file}:{_line_of_invalid_byte(raw)}", str(error), "save the file as UTF-8") from None
    decoder = StrictJsonDecoder()
    try:
        value = decoder.decode(text)
    except JsonDepthError as error:
        where = f"{file}:{error.lineno}:{error.colno}"
        raise HarnessError(where, f"cannot be read: {NESTED_TOO_DEEP}", HINT_NESTING) from None
    except json.JSONDecodeError as error:
        hint = "for one object per line use the source 'jsonl'" if error.msg == "Extra data" else "fix the file"
        raise HarnessError(f"{file}:{error.lineno}:{error.colno}", f"is not JSON: {error.msg}", hint) from None
    except ValueError:
        raise HarnessError(file, INTEGER_TOO_LONG, _HINT_INTEGER) from None
    if decoder.duplicate_key is not None:
        raise HarnessError(file, *duplicate_key_error(decoder.duplicate_key))
    return value


def _line_of_invalid_byte(raw: bytes) -> int:
    try:
        raw.decode("utf-8")
    except UnicodeDecodeError as error:
        return raw.count(b"\n", 0, error.start) + 1
    return 1


def iter_array_items(file: str, first_bytes: bytes, stream: BinaryIO) -> Iterator[tuple[Any, str | None]]:
    """Yield the items of a file's array, each with a key that is repeated in one of its objects, or None.

    Args:
        file: The file's name in errors.
        first_bytes: Bytes already read from the stream.
        stream: The remaining bytes.

    Raises:
        HarnessError: The file is not JSON, or not UTF-8; the error has line and column.
    """
    window = _JsonWindow(file, first_bytes, stream)
    window.skip_whitespace()
    window.position += 1  # the bracket, which the caller has checked
    if window.skip_whitespace() != "]":
        while True:
            yield window.parse_item(), window.value_decoder.duplicate_key
            separator = window.skip_whitespace()
            if separator == "]":
                break
            if separator != ",":
                raise window.syntax_error("Expecting ',' delimiter", window.position)
            window.position += 1
            window.skip_whitespace()
    window.position += 1
    if window.skip_whitespace():
        raise window.syntax_error("Extra data", window.position)


class _JsonWindow:
    """A window on the text of a file, filled as the text is read.

    Attributes:
        text: The decoded part of the file that is in memory.
        position: The index in `text` of the next character to parse.
        at_end: Whether the file has been read to its end.
        line: The line of the first character of `text`, from 1.
        column: Its column, from 1.
        bytes_decoded: The number of bytes of the file decoded so far.
    """

    def __init__(self, file: str, first_bytes: bytes, stream: BinaryIO) -> None:
        self.file, self.stream = file, stream
        self.decoder = codecs.getincrementaldecoder("utf-8-sig")()
        self.value_decoder = StrictJsonDecoder()
        self.text, self.position, self.at_end = "", 0, False
        self.line, self.column, self.bytes_decoded = 1, 1, 0
        self._append(first_bytes)
        self.at_end = False

    def skip_whitespace(self) -> str:
        """Return the next character that is not white space; empty at the end of the file."""
        while True:
            self.position = _match_whitespace(self.text, self.position).end()  # type: ignore[union-attr]
            if self.position < len(self.text) or self.at_end:
                return self.text[self.position : self.position + 1]
            self._read_more(BLOCK_SIZE)

    def parse_item(self) -> Any:
        """Return the value that begins at the position."""
        size = BLOCK_SIZE
        while True:
            try:
                value, end = self.value_decoder.raw_decode(self.text, self.position)
            except JsonDepthError as error:
                line, column = self._line_and_column(error.pos)
                where = f"{self.file}:{line}:{column}"
                raise HarnessError(where, f"cannot be read: {NESTED_TOO_DEEP}", HINT_NESTING) from None
            except json.JSONDecodeError as error:
                may_be_incomplete = error.pos >= len(self.text) - TRUNCATION_MARGIN or error.msg.startswith(
                    "Unterminated string"
                )
                if self.at_end or not may_be_incomplete:
                    raise self.syntax_error(error.msg, error.pos) from None
            except ValueError:
                line, column = self._line_and_column(self.position)
                raise HarnessError(f"{self.file}:{line}:{column}", INTEGER_TOO_LONG, _HINT_INTEGER) from None
            else:
                # A number at the window's end may have more digits in the file.
                if self.at_end or end < len(self.text) or isinstance(value, (dict, list, str)):
                    self.position = end
                    return value
            if len(self.text) - self.position > MAX_ROW_BYTES:
                line, column = self._line_and_column(self.position)
                raise HarnessError(f"{self.file}:{line}:{column}", f"the row {ROW_TOO_LARGE[0]}", ROW_TOO_LARGE[1])
            self._read_more(size)
            size *= 2  # the cost of an item stays proportional to its length

    def syntax_error(self, what: str, position: int) -> HarnessError:
        """Return the error for a position of the window."""
        line, column = self._line_and_column(position)
        return HarnessError(f"{self.file}:{line}:{column}", f"is not JSON: {what}", "fix the file")

    def _line_and_column(self, position: int) -> tuple[int, int]:
        line_breaks = self.text.count("\n", 0, position)
        column = position - self.text.rfind("\n", 0, position) if line_breaks else self.column + position
        return self.line + line_breaks, column

    def _read_more(self, size: int) -> None:
        self.line, self.column = self._line_and_column(self.position)
        self.text, self.position = self.text[self.position :], 0
        self._append(self.stream.read(size))

    def _append(self, raw: bytes) -> None:
        pending = len(self.decoder.getstate()[0])  # bytes of a character that is not complete yet
        try:
            self.text += self.decoder.decode(raw, final=not raw)
        except UnicodeDecodeError as error:
            line = self._line_and_column(len(self.text))[0] + error.object.count(b"\n", 0, error.start)
            byte = self.bytes_decoded - pending + error.start
            what = f"is not UTF-8: byte {byte + 1} is 0x{error.object[error.start]:02x}"
            raise HarnessError(f"{self.file}:{line}", what, "save the file as UTF-8") from None
        self.bytes_decoded += len(raw)
        self.at_end = not raw
