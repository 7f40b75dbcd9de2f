"""The contract of sources."""

from __future__ import annotations

import itertools

from harness.testing.component_under_test import CheckSkipped, ComponentUnderTest, require
from harness.types import InvalidRecord, Record


def check_records(subject: ComponentUnderTest) -> None:
    """It yields the rows of the example, each with a location of its own."""
    records = _read(subject)
    require(len(records) == subject.example.rows, f"it yields {len(records)} rows, not {subject.example.rows}")
    locations = [record.location for record in records]
    require(len(set(locations)) == len(locations), f"two rows have the same location, among {locations[:5]}")
    require(all(locations), "a row has an empty location")


def check_order(subject: ComponentUnderTest) -> None:
    """It yields the same rows in the same order every time."""
    require(_read(subject) == _read(subject), "two readings differ")


def check_first_rows(subject: ComponentUnderTest) -> None:
    """It can be stopped after the first row, as the key `head` does."""
    records = _read(subject)
    iterator = iter(subject.create().records())
    first = list(itertools.islice(iterator, 1))
    close = getattr(iterator, "close", None)
    if close is not None:
        close()
    require(first == records[:1], "the first row differs where only it is read")


def check_metadata(subject: ComponentUnderTest) -> None:
    """Metadata and warnings are strings."""
    _skip_unreadable(subject)
    source = subject.create()
    list(source.records())
    metadata = source.metadata()
    require(
        all(isinstance(value, str) for value in metadata.values()), f"the metadata {dict(metadata)} are not strings"
    )
    require(all(isinstance(text, str) for text in source.warnings()), "a warning is not a string")


def _read(subject: ComponentUnderTest) -> list[Record | InvalidRecord]:
    _skip_unreadable(subject)
    return list(subject.create().records())


def _skip_unreadable(subject: ComponentUnderTest) -> None:
    if subject.example.rows is None:
        raise CheckSkipped("its example has no `rows`: declare Component(example=ComponentExample(rows=…))")


CHECKS = (check_records, check_order, check_first_rows, check_metadata)
