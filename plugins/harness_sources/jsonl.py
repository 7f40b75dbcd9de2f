"""Rows from files with one JSON object a line. Blank lines are no rows."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from harness import Record, Source
from harness_sources.files import BadRows, decode, every, no_rows, reading, shown


class JsonLines(Source):
    """The objects of JSONL files, in order. A place is `file:line`."""

    def __init__(self, path: str | Sequence[str]) -> None:
        self.paths = every(path)

    def records(self) -> Iterator[Record]:
        """Every object with its line. Raises HarnessError, at the end of the files, for the lines that hold none."""
        bad = BadRows()
        for path in self.paths:
            yield from _read(path, bad)
        bad.raise_any()


def _read(path: Path, bad: BadRows) -> Iterator[Record]:
    file, empty = shown(path), True
    with reading(path), path.open("rb") as lines:
        for number, raw in enumerate(lines, 1):
            if not raw.strip():
                continue
            empty = False
            place = f"{file}:{number}"
            try:
                row = _parse(decode(raw, first=number == 1))
            except ValueError as error:
                bad.add(file, place, str(error), _hint(str(error)))
                continue
            if isinstance(row, dict):
                yield Record(place, row)
            else:
                kind = "an array" if isinstance(row, list) else f"the value {json.dumps(row)[:40]}"
                hint = (
                    "for one JSON array in a file use the source 'json'" if isinstance(row, list) else "mend the line"
                )
                bad.add(file, place, f"is {kind}, not an object", hint)
    if empty:
        raise no_rows(path)


def _parse(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"is not JSON: {error.msg} at column {error.colno}") from None
    except RecursionError:
        raise ValueError("is nested too deep to be read") from None


def _hint(what: str) -> str:
    if "UTF-8" in what:
        return "save the file as UTF-8"
    return "each line holds one JSON object; for JSON over several lines use the source 'json'"
