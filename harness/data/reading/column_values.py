"""Look up a column of a raw row. Dots select keys of nested objects, unless a column has that very name."""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import islice
from typing import Any

from harness.data.reading.row_formats import MAX_KEYS_SHOWN
from harness.errors import InvalidRow
from harness.utils.formatting import one_line


def column_value(data: Mapping[str, Any], column: str) -> Any:
    """Return the value of a column; None if the row does not have it."""
    if column in data:
        return data[column]
    value: Any = data
    for key in column.split("."):
        value = value.get(key) if isinstance(value, Mapping) else None
    return value


def has_column(data: Mapping[str, Any], column: str) -> bool:
    """Return whether a row has a column, also if its value is null."""
    *path, last = column.split(".")
    parent = column_value(data, ".".join(path)) if path else data
    return column in data or (isinstance(parent, Mapping) and last in parent)


def column_text(data: Mapping[str, Any], column: str, purpose: str) -> str:
    """Return the value of a column as text; 1.0 is "1", as a column of numbers with gaps is often written with 1.0.

    Args:
        data: The raw row.
        column: The column.
        purpose: What the column is for, e.g. `by which held_out groups the rows`.

    Raises:
        InvalidRow: The row has no text and no number there; NaN is none.
    """
    value = column_value(data, column)
    if isinstance(value, float):
        value = None if math.isnan(value) else int(value) if value.is_integer() else value
    if value is None or isinstance(value, (Mapping, list, tuple)) or not str(value).strip():
        what = f"has no {column!r}, a column {purpose}"
        raise InvalidRow(what, f"add it as a text or a number, or name a column of the rows: {list_columns(data)}")
    return str(value)


def list_columns(data: Mapping[str, Any]) -> str:
    """Return the first columns of a row, for a message."""
    return ", ".join(one_line(str(key), 40) for key in islice(data, MAX_KEYS_SHOWN))
