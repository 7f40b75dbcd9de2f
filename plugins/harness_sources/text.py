"""Plain text, for continued pretraining: a document a line, or a file."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from harness import Bad, Record, Source
from harness_sources.files import Files, decode, legible, no_rows, shown


class Text(Source):
    """The documents of text files, each a row with the column `text`.

    document: `line`: every line that is not blank, at the place `file:line`; `file`: a whole file, at the place `file`.
    """

    def __init__(self, path: str | Sequence[str], storage: Mapping[str, Any], document: str) -> None:
        self.files, self.document = Files(path, storage), document

    def records(self) -> Iterator[Record | Bad]:
        """Every document; one that is not UTF-8 is a bad row."""
        for path in self.files:
            with self.files.open(path) as file:
                if self.document == "file":
                    yield _row(file.read(), shown(path), first=True)
                    continue
                place, empty = shown(path), True
                for number, raw in enumerate(file, 1):
                    if not raw.isspace():
                        empty = False
                        yield _row(raw.rstrip(b"\r\n"), f"{place}:{number}", first=number == 1)
            if empty:
                raise no_rows(path)


def _row(raw: bytes, place: str, *, first: bool) -> Record | Bad:
    try:
        return Record(place, {"text": decode(raw, first)})
    except ValueError as error:
        return Bad(place, str(error), "save the file as UTF-8", legible(raw))
