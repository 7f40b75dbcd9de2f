"""Rows from JSON files that hold one array of objects."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from harness import HarnessError, Record, Source
from harness_sources.files import BadRows, decode, every, no_rows, reading, shown


class JsonArray(Source):
    """The objects of JSON files: of the file's array, or of the one array in the file's object.

    A place is `file:[index]`, from 0. Each file is read whole.
    """

    def __init__(self, path: str | Sequence[str]) -> None:
        self.paths = every(path)

    def records(self) -> Iterator[Record]:
        """Every object with its index. Raises HarnessError for a file that is no such array, and for other items."""
        bad = BadRows()
        for path in self.paths:
            file = shown(path)
            for index, row in enumerate(_rows(path)):
                place = f"{file}:[{index}]"
                if isinstance(row, dict):
                    yield Record(place, row)
                else:
                    bad.add(file, place, f"is {json.dumps(row)[:40]}, not an object", "mend the row")
        bad.raise_any()


def _rows(path: Path) -> list[Any]:
    document = _document(path)
    if isinstance(document, dict):
        arrays = {key: value for key, value in document.items() if isinstance(value, list)}
        if len(arrays) != 1:
            what = f"is an object with {len(arrays)} arrays, so it does not say which one holds the rows"
            raise HarnessError(shown(path), what, "keep one array of objects in the file")
        (document,) = arrays.values()
    if not isinstance(document, list):
        raise HarnessError(shown(path), "is not an array of objects", "keep one array of objects in the file")
    if not document:
        raise no_rows(path)
    return document


def _document(path: Path) -> Any:
    with reading(path):
        raw = path.read_bytes()
    if not raw.strip():
        raise no_rows(path)
    try:
        return json.loads(decode(raw, first=True))
    except json.JSONDecodeError as error:
        hint = "for one object a line use the source 'jsonl'" if error.msg == "Extra data" else "mend the file"
        where = f"{shown(path)}:{error.lineno}:{error.colno}"
        raise HarnessError(where, f"is not JSON: {error.msg}", hint) from None
    except RecursionError:
        raise HarnessError(shown(path), "is nested too deep to be read", "mend the file") from None
    except ValueError as error:
        raise HarnessError(_line_of_bad_byte(path, raw), str(error), "save the file as UTF-8") from None


def _line_of_bad_byte(path: Path, raw: bytes) -> str:
    for number, line in enumerate(raw.split(b"\n"), 1):
        try:
            line.decode("utf-8")
        except UnicodeDecodeError:
            return f"{shown(path)}:{number}"
    return shown(path)
