"""Which raw rows of a source are kept, by the values of their columns.

Knows the data's own columns, not the standard names that forms read.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from harness.contracts import Record
from harness.errors import HarnessError


class Filter:
    """Keeps the rows whose columns all have one of the values given.

    wanted: column -> a value or a list of values. A column's dots lead into objects, where no column has that very
    name; a column that is not there counts as null. Values are compared as JSON has them: 1 is 1.0, not true or "1".
    """

    def __init__(self, wanted: Mapping[str, Any], where: str) -> None:
        self.where = where
        self.wanted = {
            key: [_typed(v) for v in (value if isinstance(value, list) else [value])] for key, value in wanted.items()
        }
        self.first: Record | None = None

    def keeps(self, record: Record) -> bool:
        """Whether a row is kept."""
        if not self.wanted:
            return True
        if self.first is None:
            self.first = record
        return all(_typed(_value(record.data, column)) in values for column, values in self.wanted.items())

    def keeps_none(self, read: int) -> HarnessError:
        """The error for a filter that leaves no row, with what the first row has."""
        data = self.first.data if self.first else {}
        place = self.first.place if self.first else "the first row"
        has = ", ".join(f"{column} = {str(_value(data, column))[:40]!r}" for column in self.wanted)
        return HarnessError(self.where, f"its filter keeps none of {read} rows: {place} has {has}", "mend 'filter'")


def _value(data: Mapping[str, Any], column: str) -> Any:
    if column in data:
        return data[column]
    value: Any = data
    for step in column.split("."):
        value = value.get(step) if isinstance(value, Mapping) else None
    return value


def _typed(value: Any) -> tuple[str, Any]:
    """A value beside its type in JSON, so that true is not 1."""
    if isinstance(value, bool):
        return "boolean", value
    return ("number" if isinstance(value, (int, float)) else type(value).__name__), value
