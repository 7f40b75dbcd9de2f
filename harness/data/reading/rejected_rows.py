"""The bad rows of a source: named, written down whole, and counted against the share that the spec allows.

Knows nothing of what makes a row bad.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from harness.data.reading.conversation_store import disk_write_error
from harness.errors import HarnessError, raise_all
from harness.types import InvalidRecord

MAX_ERRORS_SHOWN = 5
"""Bad rows that an error names; the file names them all."""

MAX_RAW_CHARACTERS = 100_000
"""Characters of a bad row's raw text that are written down; the rest of it is counted."""


OUTPUT_FOLDER_HINT = 'name another folder in "output"'
"""Where the file goes instead, if it cannot be written."""


class InvalidRowLog:
    """Takes bad rows in. path: a file that gets a line for each, made with the first; None: they are only counted.

    A line is an object with `place`, `reason`, `hint` and `row`: the raw row, or the raw text where it is none.
    """

    def __init__(self, path: Path | None) -> None:
        self.path, self.count = path, 0
        self.first_errors: list[HarnessError] = []
        self._file: IO[str] | None = None

    def add(self, record: InvalidRecord) -> None:
        """Name a bad row, and write it down. Raises HarnessError when the file cannot be written."""
        self.count += 1
        if len(self.first_errors) < MAX_ERRORS_SHOWN:
            self.first_errors.append(HarnessError(record.location, record.what, record.hint))
        if self.path is None:
            return
        raw: Any = record.raw
        if isinstance(raw, str) and len(raw) > MAX_RAW_CHARACTERS:
            raw = f"{raw[:MAX_RAW_CHARACTERS]} … and {len(raw) - MAX_RAW_CHARACTERS} more characters"
        line = {"place": record.location, "reason": record.what, "hint": record.hint, "row": raw}
        # What Arrow holds and JSON does not (dates, bytes) is written as Python shows it.
        text = json.dumps(line, ensure_ascii=False, default=repr)
        try:
            if self._file is None:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                # Half of a surrogate pair is written as the escape that it came from.
                self._file = self.path.open("w", encoding="utf-8", errors="backslashreplace")
            self._file.write(f"{text}\n")
        except OSError as error:
            raise disk_write_error(self.path, error, OUTPUT_FOLDER_HINT) from error

    def close(self) -> None:
        """Close the file; nothing can be added after that. Raises HarnessError when its end cannot be written."""
        if self._file is not None and self.path is not None:
            try:
                self._file.close()
            except OSError as error:
                raise disk_write_error(self.path, error, OUTPUT_FOLDER_HINT) from error

    def raise_if_too_many(self, total_rows: int, allowed_share: float, where: str) -> None:
        """Raise HarnessError when more than the share `allowed` of the `whole` rows is bad."""
        if self.count > allowed_share * total_rows:
            raise_all(self._errors(total_rows, allowed_share, where))

    def _errors(self, total_rows: int, allowed_share: float, where: str) -> Iterator[HarnessError]:
        yield from self.first_errors
        more = self.count - len(self.first_errors)
        hint = f"{self.path} names them all" if self.path else ""
        if allowed_share:
            what = f"{self.count} of {total_rows} rows are bad, more than the share of {allowed_share:g} "
            what += "that 'rejected' allows"
            yield HarnessError(where, what, hint)
        elif more:
            yield HarnessError(where, f"and {more} more bad rows, of {total_rows} rows", hint)
