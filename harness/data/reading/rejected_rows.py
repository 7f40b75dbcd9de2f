"""Log the invalid rows of a source: name them, write them to a file, and compare their share with the limit."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from harness.data.reading.disk_errors import disk_write_error
from harness.errors import HarnessError, raise_all
from harness.types import InvalidRecord
from harness.utils.formatting import round_up_share

MAX_ERRORS_SHOWN = 5
"""Invalid rows that an error names; the file has all of them."""

MAX_RAW_CHARACTERS = 100_000
"""Characters of an invalid row's raw text that are written; the rest is counted."""

OUTPUT_FOLDER_HINT = 'name another folder in "output"'
"""What to do if the file of invalid rows cannot be written."""


class InvalidRowLog:
    """Collects invalid rows and writes them to a file.

    The file is created with the first row. Each line is an object with `place`, `reason`, `hint` and `row`: the raw
    row, or the raw text where the row could not be parsed.

    Attributes:
        path: The file; None if the rows are only counted.
        count: Invalid rows so far.
        first_errors: The errors of the first `MAX_ERRORS_SHOWN` rows.
    """

    def __init__(self, path: Path | None) -> None:
        self.path, self.count = path, 0
        self.first_errors: list[HarnessError] = []
        self._file: IO[str] | None = None

    def add(self, record: InvalidRecord) -> None:
        """Count an invalid row and write it to the file.

        Raises:
            HarnessError: The file cannot be written.
        """
        self.count += 1
        if len(self.first_errors) < MAX_ERRORS_SHOWN:
            self.first_errors.append(HarnessError(record.location, record.what, record.hint))
        if self.path is None:
            return
        raw: Any = record.raw
        if isinstance(raw, str) and len(raw) > MAX_RAW_CHARACTERS:
            raw = f"{raw[:MAX_RAW_CHARACTERS]} … and {len(raw) - MAX_RAW_CHARACTERS} more characters"
        line = {"place": record.location, "reason": record.what, "hint": record.hint, "row": raw}
        # Arrow holds values that JSON does not (dates, bytes): they are written as Python represents them.
        text = json.dumps(line, ensure_ascii=False, default=repr)
        try:
            if self._file is None:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                # Half of a surrogate pair is written as the escape that it was read from.
                self._file = self.path.open("w", encoding="utf-8", errors="backslashreplace")
            self._file.write(f"{text}\n")
        except OSError as error:
            raise disk_write_error(self.path, error, OUTPUT_FOLDER_HINT) from error

    def close(self) -> None:
        """Close the file; no row can be added afterwards.

        Raises:
            HarnessError: The end of the file cannot be written.
        """
        if self._file is not None and self.path is not None:
            try:
                self._file.close()
            except OSError as error:
                raise disk_write_error(self.path, error, OUTPUT_FOLDER_HINT) from error

    def raise_if_too_many(self, total_rows: int, allowed_share: float, where: str) -> None:
        """Raise HarnessError when more than the allowed share of the rows is invalid."""
        if self.count > allowed_share * total_rows:
            raise_all(self._errors(total_rows, allowed_share, where))

    def _errors(self, total_rows: int, allowed_share: float, where: str) -> Iterator[HarnessError]:
        unnamed = self.count - len(self.first_errors)
        share = round_up_share(self.count / total_rows)
        if self.count == 1 and not allowed_share:  # one line says it all
            (error,) = self.first_errors
            remedies = [error.hint, f'drop it: "rejected": {share}' if float(share) < 1 else ""]
            yield HarnessError(error.where, error.what, "; or ".join(filter(None, remedies)))
            return
        yield from self.first_errors
        hints = [f"{self.path} lists all of them"] if self.path else []
        if float(share) < 1:
            hints.append(f'to drop them set "rejected": {share}')
        hint = "; ".join(hints)
        if allowed_share:
            what = f"{self.count} of {total_rows} rows are invalid, more than the share {allowed_share:g} "
            yield HarnessError(where, f"{what}that 'rejected' allows", hint)
        elif unnamed:
            yield HarnessError(where, f"and {unnamed} more invalid rows, of {total_rows} rows", hint)
        elif float(share) < 1:
            yield HarnessError(where, f"{self.count} of {total_rows} rows are invalid", hint)
