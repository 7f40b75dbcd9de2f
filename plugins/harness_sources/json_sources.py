"""The items of one JSON array, one by one, whatever the size of the file that holds it.

Knows JSON's grammar around the items; each item is left to the json module.
"""

from __future__ import annotations

import codecs
import json
import re
from codecs import BOM_UTF8
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, BinaryIO

from harness import HarnessError, InvalidRecord, Record, Source
from harness.utils.json_files import StrictJsonDecoder, duplicate_key_error
from harness_sources.files import (
    INTEGER_TOO_LONG,
    SourceFiles,
    decode_utf8,
    display_path,
    escape_invalid_utf8,
    no_rows_error,
)

BLOCK_SIZE = 1 << 18
"""Bytes read at once; more where one item is longer."""

TRUNCATION_MARGIN = 16
"""An error this many characters before the end of what is read may be but an item that goes on."""

_match_whitespace = re.compile(r"[ \t\n\r]*").match


def iter_array_items(file: str, begin: bytes, stream: BinaryIO) -> Iterator[tuple[Any, str | None]]:
    """The items of a file's array, each with a key that an object in it names twice, or None.

    file: as shown in errors. begin: bytes already read from the stream.
    Raises HarnessError with line and column where the file is not JSON, or not UTF-8.
    """
    text = _JsonWindow(file, begin, stream)
    text.skip_whitespace()
    text.position += 1  # the bracket that the caller has seen
    if text.skip_whitespace() != "]":
        while True:
            yield text.parse_item(), text.value_decoder.duplicate_key
            follows = text.skip_whitespace()
            if follows == "]":
                break
            if follows != ",":
                raise text.syntax_error("Expecting ',' delimiter", text.position)
            text.position += 1
            text.skip_whitespace()
    text.position += 1
    if text.skip_whitespace():
        raise text.syntax_error("Extra data", text.position)


class _JsonWindow:
    """A window on the text of a file, filled as it is read. at: where reading stands in it."""

    def __init__(self, file: str, begin: bytes, stream: BinaryIO) -> None:
        self.file, self.stream = file, stream
        self.decoder = codecs.getincrementaldecoder("utf-8-sig")()
        self.value_decoder = StrictJsonDecoder()
        self.text, self.position, self.at_end = "", 0, False
        self.line, self.column, self.bytes_decoded = 1, 1, 0  # of the window's first character; bytes decoded so far
        self._append(begin)
        self.at_end = False

    def skip_whitespace(self) -> str:
        """The next character that is no white space; blank at the end of the file."""
        while True:
            self.position = _match_whitespace(self.text, self.position).end()  # type: ignore[union-attr]
            if self.position < len(self.text) or self.at_end:
                return self.text[self.position : self.position + 1]
            self._read_more(BLOCK_SIZE)

    def parse_item(self) -> Any:
        """The value that begins here."""
        size = BLOCK_SIZE
        while True:
            try:
                value, end = self.value_decoder.raw_decode(self.text, self.position)
            except json.JSONDecodeError as error:
                goes_on = error.pos >= len(self.text) - TRUNCATION_MARGIN or error.msg.startswith("Unterminated string")
                if self.at_end or not goes_on:
                    raise self.syntax_error(error.msg, error.pos) from None
            except RecursionError:
                raise HarnessError(self.file, "is nested too deep to be read", "mend the file") from None
            except ValueError:
                line, column = self._line_and_column(self.position)
                raise HarnessError(
                    f"{self.file}:{line}:{column}", INTEGER_TOO_LONG, "write the number as text"
                ) from None
            else:
                if self.at_end or end < len(self.text) or isinstance(value, (dict, list, str)):
                    self.position = end
                    return value
            self._read_more(size)
            size *= 2  # so that an item of any length costs time in proportion to it

    def syntax_error(self, what: str, position: int) -> HarnessError:
        """The error for what stands at a position of the window."""
        line, column = self._line_and_column(position)
        return HarnessError(f"{self.file}:{line}:{column}", f"is not JSON: {what}", "mend the file")

    def _line_and_column(self, position: int) -> tuple[int, int]:
        breaks = self.text.count("\n", 0, position)
        column = position - self.text.rfind("\n", 0, position) if breaks else self.column + position
        return self.line + breaks, column

    def _read_more(self, size: int) -> None:
        self.line, self.column = self._line_and_column(self.position)
        self.text, self.position = self.text[self.position :], 0
        self._append(self.stream.read(size))

    def _append(self, raw: bytes) -> None:
        waiting = len(self.decoder.getstate()[0])
        try:
            self.text += self.decoder.decode(raw, final=not raw)
        except UnicodeDecodeError as error:
            line = self._line_and_column(len(self.text))[0] + error.object.count(b"\n", 0, error.start)
            byte = self.bytes_decoded - waiting + error.start
            what = f"is not UTF-8: byte {byte + 1} is 0x{error.object[error.start]:02x}"
            raise HarnessError(f"{self.file}:{line}", what, "save the file as UTF-8") from None
        self.bytes_decoded += len(raw)
        self.at_end = not raw


class JsonlSource(Source):
    """The objects of JSONL files, in order. A place is `file:line`."""

    def __init__(self, path: str | Sequence[str], storage: Mapping[str, Any]) -> None:
        self.files = SourceFiles(path, storage)

    def records(self) -> Iterator[Record | InvalidRecord]:
        """Every object with its line; a line that holds none, or names a key twice, is a bad row."""
        decoder = StrictJsonDecoder()
        for path in self.files:
            empty = True
            with self.files.open(path) as lines:
                file = display_path(path)
                for number, raw in enumerate(lines, 1):
                    if raw.isspace() or raw.strip() == BOM_UTF8:
                        continue
                    empty = False
                    yield _parse_line(raw, decoder, f"{file}:{number}")
            if empty:
                raise no_rows_error(path)


def _parse_line(raw: bytes, decoder: StrictJsonDecoder, location: str) -> Record | InvalidRecord:
    try:
        # A byte order mark stands before the first line of each file, also where several were put into one.
        text = decode_utf8(raw, is_file_start=False).removeprefix("\ufeff")
    except ValueError as error:
        return InvalidRecord(location, str(error), "save the file as UTF-8", escape_invalid_utf8(raw))
    try:
        row = decoder.decode(text)
    except json.JSONDecodeError as error:
        hint = "each line holds one JSON object; for JSON over several lines use the source 'json'"
        return InvalidRecord(location, f"is not JSON: {error.msg} at column {error.colno}", hint, text)
    except RecursionError:
        return InvalidRecord(location, "is nested too deep to be read", "mend the line", text)
    except ValueError:  # Python reads no longer ones, which would take forever
        return InvalidRecord(location, INTEGER_TOO_LONG, "write the number as text", text)
    if decoder.duplicate_key is not None:
        return InvalidRecord(location, *duplicate_key_error(decoder.duplicate_key), text)
    if isinstance(row, dict):
        return Record(location, row)
    if isinstance(row, list):
        return InvalidRecord(
            location, "is an array, not an object", "for one JSON array in a file use the source 'json'", text
        )
    return InvalidRecord(location, f"is the value {json.dumps(row)[:40]}, not an object", "mend the line", text)


class JsonSource(Source):
    """The objects of JSON files: of the file's array, or of the one array in the file's object.

    A place is `file:[index]`, from 0. An array is read item by item, an object whole.
    """

    def __init__(self, path: str | Sequence[str], storage: Mapping[str, Any]) -> None:
        self.files = SourceFiles(path, storage)

    def records(self) -> Iterator[Record | InvalidRecord]:
        """Every object with its index; another item, or one that names a key twice, is a bad row.

        Raises HarnessError for a file that is no array.
        """
        for path in self.files:
            file, index = display_path(path), -1
            with self.files.open(path) as stream:
                for index, (row, twice) in enumerate(_iter_items(file, path, stream)):
                    place = f"{file}:[{index}]"
                    if twice is not None:
                        yield InvalidRecord(place, *duplicate_key_error(twice), row)
                    elif isinstance(row, dict):
                        yield Record(place, row)
                    else:
                        yield InvalidRecord(place, f"is {json.dumps(row)[:40]}, not an object", "mend the row", row)
            if index < 0:
                raise no_rows_error(path)


def _iter_items(file: str, path: str, stream: BinaryIO) -> Iterator[tuple[Any, str | None]]:
    """The items, each with a key that an object in it names twice, or None."""
    begin = b""
    while not begin.removeprefix(b"\xef\xbb\xbf").strip():
        block = stream.read(1 << 16)
        if not block:
            raise no_rows_error(path)
        begin += block
    if begin.removeprefix(b"\xef\xbb\xbf").lstrip()[:1] == b"[":
        yield from iter_array_items(file, begin, stream)
        return
    document = _parse_document(file, begin + stream.read())
    if not isinstance(document, dict):
        raise HarnessError(file, "is not an array of objects", "keep one array of objects in the file")
    arrays = [value for value in document.values() if isinstance(value, list)]
    if len(arrays) != 1:
        what = f"is an object with {len(arrays)} arrays, so it does not say which one holds the rows"
        raise HarnessError(file, what, "keep one array of objects in the file")
    yield from ((row, None) for row in arrays[0])


def _parse_document(file: str, raw: bytes) -> Any:
    try:
        text = decode_utf8(raw, is_file_start=True)
    except ValueError as error:
        raise HarnessError(f"{file}:{_line_of_bad_byte(raw)}", str(error), "save the file as UTF-8") from None
    decoder = StrictJsonDecoder()
    try:
        value = decoder.decode(text)
    except json.JSONDecodeError as error:
        hint = "for one object a line use the source 'jsonl'" if error.msg == "Extra data" else "mend the file"
        raise HarnessError(f"{file}:{error.lineno}:{error.colno}", f"is not JSON: {error.msg}", hint) from None
    except RecursionError:
        raise HarnessError(file, "is nested too deep to be read", "mend the file") from None
    except ValueError:
        raise HarnessError(file, INTEGER_TOO_LONG, "write the number as text") from None
    if decoder.duplicate_key is not None:
        raise HarnessError(file, *duplicate_key_error(decoder.duplicate_key))
    return value


def _line_of_bad_byte(raw: bytes) -> int:
    try:
        raw.decode("utf-8")
    except UnicodeDecodeError as error:
        return raw.count(b"\n", 0, error.start) + 1
    return 1
