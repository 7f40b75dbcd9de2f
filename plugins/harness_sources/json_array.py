"""Rows from JSON files that hold one array of objects."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, BinaryIO

from harness import Bad, HarnessError, Record, Source
from harness.json_text import Decoder, named_twice
from harness_sources.files import LONG_NUMBER, Files, decode, no_rows, shown
from harness_sources.json_items import items


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
