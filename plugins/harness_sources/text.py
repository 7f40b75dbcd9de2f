"""Plain text, for continued pretraining: a document a line, or a file."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from harness import InvalidRecord, Record, Source
from harness_sources.files import SourceFiles, decode_utf8, display_path, escape_invalid_utf8, no_rows_error


class TextSource(Source):
    """The documents of text files, each a row with the column `text`.

    document: `line`: every line that is not blank, at the place `file:line`; `file`: a whole file, at the place `file`.
    """

    def __init__(self, path: str | Sequence[str], storage: Mapping[str, Any], document: str) -> None:
        self.files, self.document = SourceFiles(path, storage), document

    def records(self) -> Iterator[Record | InvalidRecord]:
        """Every document; one that is not UTF-8 is a bad row."""
        for path in self.files:
            with self.files.open(path) as file:
                if self.document == "file":
                    yield _build_record(file.read(), display_path(path), is_file_start=True)
                    continue
                place, empty = display_path(path), True
                for number, raw in enumerate(file, 1):
                    if not raw.isspace():
                        empty = False
                        yield _build_record(raw.rstrip(b"\r\n"), f"{place}:{number}", is_file_start=number == 1)
            if empty:
                raise no_rows_error(path)


def _build_record(raw: bytes, location: str, *, is_file_start: bool) -> Record | InvalidRecord:
    try:
        return Record(location, {"text": decode_utf8(raw, is_file_start)})
    except ValueError as error:
        return InvalidRecord(location, str(error), "save the file as UTF-8", escape_invalid_utf8(raw))
