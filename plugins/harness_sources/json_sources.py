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

from harness import Bad, HarnessError, Record, Source
from harness.utils.json_files import Decoder, named_twice
from harness_sources.files import LONG_NUMBER, Files, decode, legible, no_rows, shown

BLOCK = 1 << 18
"""Bytes read at once; more where one item is longer."""

NEAR = 16
"""An error this many characters before the end of what is read may be but an item that goes on."""

_space = re.compile(r"[ \t\n\r]*").match


def items(file: str, begin: bytes, stream: BinaryIO) -> Iterator[tuple[Any, str | None]]:
    """The items of a file's array, each with a key that an object in it names twice, or None.

    file: as shown in errors. begin: bytes already read from the stream.
    Raises HarnessError with line and column where the file is not JSON, or not UTF-8.
    """
    text = _Text(file, begin, stream)
    text.skip()
    text.at += 1  # the bracket that the caller has seen
    if text.skip() != "]":
        while True:
            yield text.item(), text.values.twice
            follows = text.skip()
            if follows == "]":
                break
            if follows != ",":
                raise text.error("Expecting ',' delimiter", text.at)
            text.at += 1
            text.skip()
    text.at += 1
    if text.skip():
        raise text.error("Extra data", text.at)


class _Text:
    """A window on the text of a file, filled as it is read. at: where reading stands in it."""

    def __init__(self, file: str, begin: bytes, stream: BinaryIO) -> None:
        self.file, self.stream = file, stream
        self.decoder = codecs.getincrementaldecoder("utf-8-sig")()
        self.values = Decoder()
        self.text, self.at, self.ended = "", 0, False
        self.line, self.column, self.taken = 1, 1, 0  # of the window's first character; bytes decoded so far
        self._add(begin)
        self.ended = False

    def skip(self) -> str:
        """The next character that is no white space; blank at the end of the file."""
        while True:
            self.at = _space(self.text, self.at).end()  # type: ignore[union-attr]
            if self.at < len(self.text) or self.ended:
                return self.text[self.at : self.at + 1]
            self._more(BLOCK)

    def item(self) -> Any:
        """The value that begins here."""
        size = BLOCK
        while True:
            try:
                value, end = self.values.begun(self.text, self.at)
            except json.JSONDecodeError as error:
                goes_on = error.pos >= len(self.text) - NEAR or error.msg.startswith("Unterminated string")
                if self.ended or not goes_on:
                    raise self.error(error.msg, error.pos) from None
            except RecursionError:
                raise HarnessError(self.file, "is nested too deep to be read", "mend the file") from None
            except ValueError:
                line, column = self._place(self.at)
                raise HarnessError(f"{self.file}:{line}:{column}", LONG_NUMBER, "write the number as text") from None
            else:
                if self.ended or end < len(self.text) or isinstance(value, (dict, list, str)):
                    self.at = end
                    return value
            self._more(size)
            size *= 2  # so that an item of any length costs time in proportion to it

    def error(self, what: str, at: int) -> HarnessError:
        """The error for what stands at a position of the window."""
        line, column = self._place(at)
        return HarnessError(f"{self.file}:{line}:{column}", f"is not JSON: {what}", "mend the file")

    def _place(self, at: int) -> tuple[int, int]:
        breaks = self.text.count("\n", 0, at)
        column = at - self.text.rfind("\n", 0, at) if breaks else self.column + at
        return self.line + breaks, column

    def _more(self, size: int) -> None:
        self.line, self.column = self._place(self.at)
        self.text, self.at = self.text[self.at :], 0
        self._add(self.stream.read(size))

    def _add(self, raw: bytes) -> None:
        waiting = len(self.decoder.getstate()[0])
        try:
            self.text += self.decoder.decode(raw, final=not raw)
        except UnicodeDecodeError as error:
            line = self._place(len(self.text))[0] + error.object.count(b"\n", 0, error.start)
            byte = self.taken - waiting + error.start
            what = f"is not UTF-8: byte {byte + 1} is 0x{error.object[error.start]:02x}"
            raise HarnessError(f"{self.file}:{line}", what, "save the file as UTF-8") from None
        self.taken += len(raw)
        self.ended = not raw


class JsonLines(Source):
    """The objects of JSONL files, in order. A place is `file:line`."""

    def __init__(self, path: str | Sequence[str], storage: Mapping[str, Any]) -> None:
        self.files = Files(path, storage)

    def records(self) -> Iterator[Record | Bad]:
        """Every object with its line; a line that holds none, or names a key twice, is a bad row."""
        decoder = Decoder()
        for path in self.files:
            empty = True
            with self.files.open(path) as lines:
                file = shown(path)
                for number, raw in enumerate(lines, 1):
                    if raw.isspace() or raw.strip() == BOM_UTF8:
                        continue
                    empty = False
                    yield _row(raw, decoder, f"{file}:{number}")
            if empty:
                raise no_rows(path)


def _row(raw: bytes, decoder: Decoder, place: str) -> Record | Bad:
    try:
        # A byte order mark stands before the first line of each file, also where several were put into one.
        text = decode(raw, first=False).removeprefix("\ufeff")
    except ValueError as error:
        return Bad(place, str(error), "save the file as UTF-8", legible(raw))
    try:
        row = decoder.whole(text)
    except json.JSONDecodeError as error:
        hint = "each line holds one JSON object; for JSON over several lines use the source 'json'"
        return Bad(place, f"is not JSON: {error.msg} at column {error.colno}", hint, text)
    except RecursionError:
        return Bad(place, "is nested too deep to be read", "mend the line", text)
    except ValueError:  # Python reads no longer ones, which would take forever
        return Bad(place, LONG_NUMBER, "write the number as text", text)
    if decoder.twice is not None:
        return Bad(place, *named_twice(decoder.twice), text)
    if isinstance(row, dict):
        return Record(place, row)
    if isinstance(row, list):
        return Bad(place, "is an array, not an object", "for one JSON array in a file use the source 'json'", text)
    return Bad(place, f"is the value {json.dumps(row)[:40]}, not an object", "mend the line", text)


class JsonArray(Source):
    """The objects of JSON files: of the file's array, or of the one array in the file's object.

    A place is `file:[index]`, from 0. An array is read item by item, an object whole.
    """

    def __init__(self, path: str | Sequence[str], storage: Mapping[str, Any]) -> None:
        self.files = Files(path, storage)

    def records(self) -> Iterator[Record | Bad]:
        """Every object with its index; another item, or one that names a key twice, is a bad row.

        Raises HarnessError for a file that is no array.
        """
        for path in self.files:
            file, index = shown(path), -1
            with self.files.open(path) as stream:
                for index, (row, twice) in enumerate(_rows(file, path, stream)):
                    place = f"{file}:[{index}]"
                    if twice is not None:
                        yield Bad(place, *named_twice(twice), row)
                    elif isinstance(row, dict):
                        yield Record(place, row)
                    else:
                        yield Bad(place, f"is {json.dumps(row)[:40]}, not an object", "mend the row", row)
            if index < 0:
                raise no_rows(path)


def _rows(file: str, path: str, stream: BinaryIO) -> Iterator[tuple[Any, str | None]]:
    """The items, each with a key that an object in it names twice, or None."""
    begin = b""
    while not begin.removeprefix(b"\xef\xbb\xbf").strip():
        block = stream.read(1 << 16)
        if not block:
            raise no_rows(path)
        begin += block
    if begin.removeprefix(b"\xef\xbb\xbf").lstrip()[:1] == b"[":
        yield from items(file, begin, stream)
        return
    document = _document(file, begin + stream.read())
    if not isinstance(document, dict):
        raise HarnessError(file, "is not an array of objects", "keep one array of objects in the file")
    arrays = [value for value in document.values() if isinstance(value, list)]
    if len(arrays) != 1:
        what = f"is an object with {len(arrays)} arrays, so it does not say which one holds the rows"
        raise HarnessError(file, what, "keep one array of objects in the file")
    yield from ((row, None) for row in arrays[0])


def _document(file: str, raw: bytes) -> Any:
    try:
        text = decode(raw, first=True)
    except ValueError as error:
        raise HarnessError(f"{file}:{_line_of_bad_byte(raw)}", str(error), "save the file as UTF-8") from None
    decoder = Decoder()
    try:
        value = decoder.whole(text)
    except json.JSONDecodeError as error:
        hint = "for one object a line use the source 'jsonl'" if error.msg == "Extra data" else "mend the file"
        raise HarnessError(f"{file}:{error.lineno}:{error.colno}", f"is not JSON: {error.msg}", hint) from None
    except RecursionError:
        raise HarnessError(file, "is nested too deep to be read", "mend the file") from None
    except ValueError:
        raise HarnessError(file, LONG_NUMBER, "write the number as text") from None
    if decoder.twice is not None:
        raise HarnessError(file, *named_twice(decoder.twice))
    return value


def _line_of_bad_byte(raw: bytes) -> int:
    try:
        raw.decode("utf-8")
    except UnicodeDecodeError as error:
        return raw.count(b"\n", 0, error.start) + 1
    return 1
