"""The option `held_out` of a source: which rows are for evaluation, by share, by group or by time."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from harness.data.reading.column_values import column_text, has_column, list_columns
from harness.errors import HarnessError, InvalidRow
from harness.types import Record
from harness.utils.timestamps import parse_timestamp


@dataclass(frozen=True)
class HeldOutRule:
    """How the rows of a source are split.

    Attributes:
        share: Fraction to hold out, in [0, 1); 0 if rows are held out by time.
        group: The column whose equal values stay on one side.
        near_duplicates: Whether near duplicates stay on one side.
        column: The column with a date, a time or a number.
        start: Rows whose column is at least this are held out: seconds since 1970, or a number.
        start_text: `start` as the spec has it.
    """

    share: float = 0.0
    group: str | None = None
    near_duplicates: bool = False
    column: str | None = None
    start: float | None = None
    start_text: str | float | None = None

    @classmethod
    def from_option(cls, option: float | Mapping[str, Any]) -> HeldOutRule:
        """Return the rule of a source's option `held_out`, with the defaults of the core filled in."""
        if not isinstance(option, Mapping):
            return cls(share=option)
        start = option["from"]
        return cls(
            share=option["share"] or 0.0,
            group=option["group"],
            near_duplicates=option["near_duplicates"],
            column=option["column"],
            start=None if start is None else parse_timestamp(start),
            start_text=start,
        )

    @property
    def holds_out_rows(self) -> bool:
        """Whether any row can be held out."""
        return self.share > 0 or self.start is not None

    def describe(self) -> str:
        """Return what decides, in a few words."""
        if self.start is not None:
            return f"{self.column} from {self.start_text}"
        parts = [*([] if self.group is None else [self.group]), *(["near duplicates"] if self.near_duplicates else [])]
        return " and ".join(parts) or "prompt"

    @property
    def read_column(self) -> str | None:
        """The column of the data that decides about a row."""
        return self.group if self.column is None else self.column

    def key_of_row(self, data: Mapping[str, Any]) -> int:
        """Return what the split must know of a raw row: a 64-bit hash of its group, or 1 if its time is held out.

        Raises:
            InvalidRow: The row has no such column, or its value is not a date, a time or a number.
        """
        if self.group is not None:
            text = column_text(data, self.group, "by which held_out groups the rows")
            return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "backslashreplace"), digest_size=8).digest())
        assert self.column is not None
        assert self.start is not None
        text = column_text(data, self.column, "by which held_out splits the rows")
        try:
            # CSV has numbers as text
            value = parse_timestamp(float(text) if isinstance(self.start_text, (int, float)) else text)
        except ValueError:
            what = f"has {text[:40]!r} in {self.column!r}, which held_out compares with {self.start_text!r}"
            kind = "a number" if isinstance(self.start_text, (int, float)) else "a date such as 2026-01-31"
            raise InvalidRow(what, f"write {kind} there") from None
        return int(value >= self.start)

    def require_column(self, rows: list[Record], where: str) -> None:
        """Raise HarnessError if none of the first rows has the column.

        Args:
            rows: The first valid rows.
            where: The key of the source in the spec.
        """
        column = self.read_column
        if column is not None and rows and not any(has_column(row.data, column) for row in rows):
            key = "group" if self.column is None else "column"
            what = f"{key} names {column!r}, which no row has"
            raise HarnessError(f"{where}.held_out", what, f"name a column of the rows: {list_columns(rows[0].data)}")
