"""Rows from files with one JSON object a line. Blank lines are no rows."""

from __future__ import annotations

import json
from codecs import BOM_UTF8
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from harness import Bad, Record, Source
from harness.json_text import Decoder, named_twice
from harness_sources.files import LONG_NUMBER, Files, decode, legible, no_rows, shown


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
