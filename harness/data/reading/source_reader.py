"""Read a source in one pass: raw rows in, conversations out, one by one. Dropped rows are counted and named.

The steps are: head, filter, columns, row format, conversation. Only the first rows are held in memory.
"""

from __future__ import annotations

import json
from array import array
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from itertools import chain, islice
from typing import Any

from harness.data.reading.column_values import column_text, column_value, has_column, list_columns
from harness.data.reading.held_out_rule import HeldOutRule
from harness.data.reading.rejected_rows import InvalidRowLog
from harness.data.reading.row_formats import (
    ColumnMapping,
    detect_row_format,
    name_and_layouts,
    parse_examples,
)
from harness.data.reading.row_options import RowOptions
from harness.data.reading.unread_keys import UnreadKeys
from harness.errors import ComponentError, HarnessError, InvalidRow
from harness.interfaces.source import Source
from harness.types import Example, InvalidRecord, Progress, Record
from harness.utils.formatting import join_names

ROWS_FOR_DETECTION = 1000
"""Rows that the row format is detected from; every later row must have the same format."""

GROUPING = "by which a suite groups or slices its items"

PROGRESS_INTERVAL = 10_000
"""Rows between two reports of progress."""


class RowFilter:
    """Keeps the rows in which every filtered column has an allowed value.

    The dots of a column name select keys of nested objects, unless a column has that very name. A missing column counts
    as null. Values are compared as JSON values: 1 equals 1.0, but neither true nor "1".

    Attributes:
        where: The key of the source in the spec, for errors.
        allowed_values: Column -> its allowed values, each with its JSON type.
        first_record: The first row, named in the error if no row matches.
    """

    def __init__(self, allowed_values: Mapping[str, Any], where: str) -> None:
        """Set the allowed values: column -> a value or a list of values."""
        self.where = where
        self.allowed_values = {
            column: [_with_json_type(value) for value in (values if isinstance(values, list) else [values])]
            for column, values in allowed_values.items()
        }
        self.first_record: Record | None = None

    def matches(self, record: Record) -> bool:
        """Return whether a row is kept."""
        if not self.allowed_values:
            return True
        if self.first_record is None:
            self.first_record = record
        return all(
            _with_json_type(column_value(record.data, column)) in values
            for column, values in self.allowed_values.items()
        )

    def no_match_error(self, rows_read: int) -> HarnessError:
        """Return the error for a filter that keeps no row, with the values of the first row."""
        data = self.first_record.data if self.first_record else {}
        location = self.first_record.location if self.first_record else "the first row"
        values = ", ".join(f"{column} = {str(column_value(data, column))[:40]!r}" for column in self.allowed_values)
        what = f"its filter keeps none of {rows_read} rows: {location} has {values}"
        return HarnessError(self.where, what, "change 'filter' to values that the rows have")


def _kept_value(data: Mapping[str, Any], column: str) -> Any:
    """Return a column's value as JSON has it; None for a row without the column."""
    try:
        return json.loads(json.dumps(column_value(data, column), allow_nan=False))
    except (TypeError, ValueError) as error:
        what = f"has a {column!r} that is not a JSON value, but 'keep' names it: {error}"
        raise InvalidRow(what, "remove the column from 'keep', or write it as text or numbers") from error


def _with_json_type(value: Any) -> tuple[str, Any]:
    """Return a value with its JSON type, so that true does not equal 1."""
    if isinstance(value, bool):
        return "boolean", value
    return ("number" if isinstance(value, (int, float)) else type(value).__name__), value


class SourceReader:
    """Reads a source once.

    After `iter_examples` is exhausted, `rows_read == rows_used + rows_filtered + invalid_rows.count`.

    Attributes:
        row_format: The format from the options, or the detected one.
        rows_read: Raw rows read so far; with `train_on: each` a row counts once for each trained response.
        rows_used: Rows that became examples.
        rows_filtered: Rows dropped by the filter.
        invalid_rows: The log of invalid rows.
        unread_keys: The keys of the used rows that are not read.
        split_keys: `HeldOutRule.key_of_row` of each example yielded; empty if `held_out` reads no column.
    """

    def __init__(
        self,
        source: Source,
        options: Mapping[str, Any],
        name: str,
        invalid_rows: InvalidRowLog,
        progress: Progress,
        group_columns: Sequence[str] = (),
    ) -> None:
        """Prepare to read a source.

        Args:
            source: Yields the raw rows.
            options: The source's options, with the defaults of the core filled in. See
                `row_formats.with_row_format` for a row format of a plugin.
            name: The name of the source, for errors.
            invalid_rows: Takes the invalid rows.
            progress: Receives the phase `read`, in rows.
            group_columns: Columns by which suites group the rows. Dots select keys of nested objects.
        """
        self.group_columns = group_columns
        self.source, self.name, self.invalid_rows, self.progress = source, name, invalid_rows, progress
        self.where = f"sources.{name}"
        self.head = options["head"]
        self.row_format, self._layouts = name_and_layouts(options["form"])
        self.row_options = RowOptions.from_source_options(options)
        self.kept_columns: Sequence[str] = options["keep"]
        self.held_out = HeldOutRule.from_option(options["held_out"])
        self.split_keys = array("Q")
        split_column = [] if self.held_out.read_column is None else [self.held_out.read_column]
        read_columns = [*group_columns, *self.kept_columns, *split_column]
        self.unread_keys = UnreadKeys(self.row_options, read_columns, self._layouts)
        self.allowed_invalid_share = options["rejected"]
        self.columns = ColumnMapping(options["columns"], self.where, self._layouts)
        self.row_filter = RowFilter(options["filter"], self.where)
        self.rows_read = self.rows_used = self.rows_filtered = 0

    def iter_examples(self) -> Iterator[Example]:
        """Yield the conversations, one by one.

        Raises:
            HarnessError: The row format cannot be detected, or no row has a column that `columns` or `keep` names.
        """
        records = self._iter_filtered_records()
        missing = set(self.kept_columns)
        with closing(records):
            first_records, first_valid = self._detect_format(records)
            for record in chain(first_records, records):
                if isinstance(record, InvalidRecord):
                    self.invalid_rows.add(record)
                    continue
                try:
                    row = self.columns.rename_columns(record.data)
                    examples = parse_examples(row, self.row_format, record.location, self.row_options, self._layouts)
                    if self.group_columns:
                        groups = tuple(
                            (column, column_text(record.data, column, GROUPING)) for column in self.group_columns
                        )
                        examples = [replace(example, groups=groups) for example in examples]
                    if self.kept_columns:
                        data = {column: _kept_value(record.data, column) for column in self.kept_columns}
                        missing -= {column for column in missing if has_column(record.data, column)}
                        examples = [replace(example, data=data) for example in examples]
                    if self.held_out.read_column is not None:
                        self.split_keys.extend([self.held_out.key_of_row(record.data)] * len(examples))
                except ComponentError as error:
                    raise ComponentError(error.where, f"{error.what} (row {record.location})") from error.__cause__
                except InvalidRow as error:
                    self.invalid_rows.add(InvalidRecord(record.location, error.what, error.hint, record.data))
                    continue
                self.rows_used += len(examples)
                self.rows_read += len(examples) - 1
                self.unread_keys.add_row(row, self.row_format)
                yield from examples
            self.columns.check_columns_exist(first_valid, required_only=False)
        if missing and first_valid is not None:
            what = f"'keep' names {join_names(sorted(missing))}, which no row has"
            raise HarnessError(self.where, what, f"name columns of the rows: {list_columns(first_valid.data)}")
        self.progress("read", self.rows_read, self.rows_read, self.name, "rows")

    def _detect_format(
        self, records: Iterator[Record | InvalidRecord]
    ) -> tuple[list[Record | InvalidRecord], Record | None]:
        """Detect the row format from the first batch of rows that has a valid one.

        Batches without a valid row are logged as invalid.

        Returns:
            The rows of that batch, which are still to be parsed, and its first valid row.
        """
        while batch := list(islice(records, ROWS_FOR_DETECTION)):
            valid = [record for record in batch if isinstance(record, Record)]
            if valid:
                renamed = [Record(record.location, self.columns.rename_columns(record.data)) for record in valid]
                self.columns.check_columns_exist(valid[0], required_only=True)
                self.held_out.require_column(valid, self.where)
                if self.row_format == "auto":
                    self.row_format = detect_row_format(renamed, self.where)
                self.columns.check_format_reads_columns(self.row_format)
                return batch, valid[0]
            for record in batch:
                assert isinstance(record, InvalidRecord)
                self.invalid_rows.add(record)
        return [], None

    def _iter_filtered_records(self) -> Generator[Record | InvalidRecord, None, None]:
        """Yield the first `head` raw rows, without those that the filter drops."""
        records = self.source.records()
        try:
            for record in islice(records, self.head):
                self.rows_read += 1
                if not self.rows_read % PROGRESS_INTERVAL:
                    self.progress("read", self.rows_read, 0, self.name, "rows")
                if isinstance(record, InvalidRecord) or (
                    isinstance(record, Record) and self.row_filter.matches(record)
                ):
                    yield record
                else:
                    self.rows_filtered += 1
        finally:
            if hasattr(records, "close"):
                records.close()  # closes the files of the source now, not when it is garbage-collected

    def raise_if_unusable(self) -> None:
        """Raise HarnessError when too many rows are invalid, or when no row is left."""
        self.invalid_rows.raise_if_too_many(self.rows_read - self.rows_filtered, self.allowed_invalid_share, self.where)
        if not self.rows_used:
            if self.rows_filtered:
                raise self.row_filter.no_match_error(self.rows_read)
            if self.invalid_rows.count:
                what = f"all {self.invalid_rows.count} rows are invalid; the first: {self.invalid_rows.first_errors[0]}"
                raise HarnessError(self.where, what, "fix the rows, or name other data")
            raise HarnessError(self.where, "the data set holds no rows", "add at least one row, or name other data")

    def warnings(self) -> Iterator[str]:
        """Yield the warnings about invalid rows and unread keys."""
        count, total = self.invalid_rows.count, self.rows_read - self.rows_filtered
        if count:
            see_file = "" if self.invalid_rows.path is None else f"; see {self.invalid_rows.path}"
            yield f"{count} of {total} rows of {self.name!r} are invalid and dropped{see_file}"
        yield from self.unread_keys.warnings(self.name, self.rows_used)
