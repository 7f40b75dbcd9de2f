"""Rows out of Arrow's batches, as plain Python values. pyarrow is imported by whoever reads."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from harness import Bad, HarnessError, Record


def records(batches: Iterable[Any], file: str, begin: int = 0) -> Iterator[Record | Bad]:
    """The rows of record batches. file: as shown. begin: index of the first row. A place is `file:[index]`.

    A field of an object in a row that is null is left out: Arrow gives every object of a column the fields of all of
    them, so that one tool's arguments would turn up, as nulls, in the calls of all others.
    A row with a value that Python cannot hold (text that is not UTF-8, a date beyond the year 9999) is a bad row.
    Raises HarnessError for two columns of one name.
    """
    index = begin
    for batch in batches:
        names = batch.schema.names
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise HarnessError(file, f"has two columns called {twice!r}", "rename one of them")
        nested = [field.name for field in batch.schema if _holds_objects(field.type)]
        for row in _rows(batch):
            place = f"{file}:[{index}]"
            if isinstance(row, str):
                yield Bad(place, f"holds a value that cannot be read: {row}", "mend the row", None)
            else:
                for name in nested:
                    row[name] = given(row[name])
                yield Record(place, row)
            index += 1


def _rows(batch: Any) -> Iterator[dict[str, Any] | str]:
    """The rows of a batch; in the place of one that cannot be had, why."""
    try:
        rows = batch.to_pylist()
    except (ValueError, OverflowError):
        pass  # one row has such a value: each is tried by itself
    else:
        yield from rows
        return
    for number in range(batch.num_rows):
        try:
            yield batch.slice(number, 1).to_pylist()[0]
        except (ValueError, OverflowError) as error:
            yield str(error)


def _holds_objects(kind: Any) -> bool:
    """Whether a type of Arrow is a struct, or one of its items is."""
    from pyarrow import types

    if types.is_struct(kind):
        return True
    lists = types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind)
    return lists and _holds_objects(kind.value_type)


def given(value: Any) -> Any:
    """A value of a row without the null fields of the objects in it."""
    if isinstance(value, dict):
        return {key: given(one) for key, one in value.items() if one is not None}
    return [given(one) for one in value] if isinstance(value, list) else value
