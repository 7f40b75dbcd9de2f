"""Plain text for continued pretraining: one document per line, or per file."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from harness import Component, ComponentExample, InvalidRecord, Record, Source
from harness_sources.files import (
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
    "text": Component(
        summary="Reads plain text for continued pretraining: one document per line, or per file.",
        factory="harness_sources.text:TextSource",
        options=file_options(
            "A text file in UTF-8, plain or compressed with gzip or zstd",
            document={
                "enum": ["line", "file"],
                "default": "line",
                "description": "What a document is: each line that is not blank, or each file.",
            },
        ),
        required=("path",),
        example=ComponentExample({"path": "rows.txt"}, {"rows.txt": "One.\nTwo.\n"}, rows=2),
    ),
}


class TextSource(Source):
    """The documents of text files, each a row with the column `text`."""

    def __init__(self, path: str | Sequence[str], storage: Mapping[str, Any], document: str) -> None:
        """Create the source.

        Args:
            path: See `SourceFiles`.
            storage: See `SourceFiles`.
            document: `line`: every line that is not blank, with the location `file:line`; `file`: every file, with
                the location `file`.
        """
        self.files, self.document = SourceFiles(path, storage), document

    def records(self) -> Iterator[Record | InvalidRecord]:
        """Yield every document; one that is not UTF-8 is invalid."""
        for path in self.files:
            with self.files.open(path) as stream:
                if self.document == "file":
                    content = stream.read(MAX_ROW_BYTES + 1)
                    yield _build_record(content, display_path(path), is_file_start=True)
                    continue
                file, has_rows = display_path(path), False
                for line_number, raw in enumerate(iter_lines(stream), 1):
                    if raw is None or not raw.isspace():
                        has_rows = True
                        line = None if raw is None else raw.rstrip(b"\r\n")
                        yield _build_record(line, f"{file}:{line_number}", is_file_start=line_number == 1)
            if not has_rows:
                raise no_rows_error(path)


def _build_record(raw: bytes | None, location: str, *, is_file_start: bool) -> Record | InvalidRecord:
    if raw is None or len(raw) > MAX_ROW_BYTES:
        return InvalidRecord(location, *ROW_TOO_LARGE, None)
    try:
        return Record(location, {"text": decode_utf8(raw, is_file_start)})
    except ValueError as error:
        return InvalidRecord(location, str(error), "save the file as UTF-8", escape_invalid_utf8(raw))
