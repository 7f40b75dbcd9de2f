"""One pass over a source: raw rows in, conversations out, one by one; what is left out is counted and named.

Knows the order of the steps: head, filter, columns, form, conversation. Holds the first rows alone in memory.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping
from contextlib import closing
from itertools import chain, islice
from typing import Any

from harness.data.reading.conversation import InvalidRow
from harness.data.reading.rejected_rows import InvalidRowLog
from harness.data.reading.row_formats import ColumnMapping, detect_row_format, parse_row
from harness.errors import HarnessError
from harness.interfaces.source import Source
from harness.types import Example, InvalidRecord, Progress, Record


class RowFilter:
    """Keeps the rows whose columns all have one of the values given.

    wanted: column -> a value or a list of values. A column's dots lead into objects, where no column has that very
    name; a column that is not there counts as null. Values are compared as JSON has them: 1 is 1.0, not true or "1".
    """

    def __init__(self, allowed_values: Mapping[str, Any], where: str) -> None:
        self.where = where
        self.allowed_values = {
            key: [_with_json_type(v) for v in (value if isinstance(value, list) else [value])]
            for key, value in allowed_values.items()
        }
        self.first_record: Record | None = None

    def matches(self, record: Record) -> bool:
        """Whether a row is kept."""
        if not self.allowed_values:
            return True
        if self.first_record is None:
            self.first_record = record
        return all(
            _with_json_type(_column_value(record.data, column)) in values
            for column, values in self.allowed_values.items()
        )

    def no_match_error(self, rows_read: int) -> HarnessError:
        """The error for a filter that leaves no row, with what the first row has."""
        data = self.first_record.data if self.first_record else {}
        place = self.first_record.location if self.first_record else "the first row"
        has = ", ".join(f"{column} = {str(_column_value(data, column))[:40]!r}" for column in self.allowed_values)
        return HarnessError(
            self.where, f"its filter keeps none of {rows_read} rows: {place} has {has}", "mend 'filter'"
        )


def _column_value(data: Mapping[str, Any], column: str) -> Any:
    if column in data:
        return data[column]
    value: Any = data
    for step in column.split("."):
        value = value.get(step) if isinstance(value, Mapping) else None
    return value


def _with_json_type(value: Any) -> tuple[str, Any]:
    """A value beside its type in JSON, so that true is not 1."""
    if isinstance(value, bool):
        return "boolean", value
    return ("number" if isinstance(value, (int, float)) else type(value).__name__), value


ROWS_FOR_DETECTION = 1000
"""Rows that the form is told from; every later one is held against it."""

PROGRESS_INTERVAL = 10_000
"""Rows between two reports of progress."""


class SourceReader:
    """One pass over a source. options: of the source, the core's filled in. name: the source's, for errors.

    Once `examples` is exhausted: form, as told or as given; read: raw rows = used + filtered + rejects.count.
    """

    def __init__(
        self, source: Source, options: Mapping[str, Any], name: str, invalid_rows: InvalidRowLog, progress: Progress
    ) -> None:
        self.source, self.name, self.invalid_rows, self.progress = source, name, invalid_rows, progress
        self.where = f"sources.{name}"
        self.row_format, self.train_on, self.head = options["form"], options["train_on"], options["head"]
        self.allowed_invalid_share = options["rejected"]
        self.columns = ColumnMapping(options["columns"], self.where)
        self.row_filter = RowFilter(options["filter"], self.where)
        self.rows_read = self.rows_used = self.rows_filtered = 0

    def iter_examples(self) -> Iterator[Example]:
        """The conversations, one by one."""
        records = self._iter_filtered_records()
        with closing(records):
            first, top = self._detect_format(records)
            for record in chain(first, records):
                if isinstance(record, InvalidRecord):
                    self.invalid_rows.add(record)
                    continue
                try:
                    row = self.columns.rename_columns(record.data)
                    example = parse_row(row, self.row_format, self.train_on, record.location)
                except InvalidRow as error:
                    self.invalid_rows.add(InvalidRecord(record.location, error.what, error.hint, record.data))
                    continue
                self.rows_used += 1
                yield example
            self.columns.check_columns_exist(top, required_only=False)
        self.progress("read", self.rows_read, self.rows_read, self.name, "rows")

    def _detect_format(
        self, records: Iterator[Record | InvalidRecord]
    ) -> tuple[list[Record | InvalidRecord], Record | None]:
        """The rows that the form is told from, and the first good one; bad rows before the first good one are taken in.

        Raises HarnessError when the form cannot be told, or none of the rows has a column that `columns` names.
        """
        while first := list(islice(records, ROWS_FOR_DETECTION)):
            good = [record for record in first if isinstance(record, Record)]
            if good:
                renamed = [Record(record.location, self.columns.rename_columns(record.data)) for record in good]
                self.columns.check_columns_exist(good[0], required_only=True)
                if self.row_format == "auto":
                    self.row_format = detect_row_format(renamed, self.where)
                self.columns.check_format_reads_columns(self.row_format)
                return first, good[0]
            for record in first:
                assert isinstance(record, InvalidRecord)
                self.invalid_rows.add(record)
        return [], None

    def _iter_filtered_records(self) -> Generator[Record | InvalidRecord, None, None]:
        """The raw rows, `head` of them at most, without those that the filter leaves aside."""
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
                elif isinstance(record, Record):
                    self.rows_filtered += 1
                else:
                    what = f"its source yields a {type(record).__name__}, where a Record is due"
                    raise HarnessError(self.where, what, "mend the plugin that brings it")
        finally:
            if hasattr(records, "close"):
                records.close()  # so that its files are closed now

    def raise_if_unusable(self) -> None:
        """Raise HarnessError when too many rows are bad, or when no row is left."""
        self.invalid_rows.raise_if_too_many(self.rows_read - self.rows_filtered, self.allowed_invalid_share, self.where)
        if not self.rows_used:
            if self.rows_filtered:
                raise self.row_filter.no_match_error(self.rows_read)
            if self.invalid_rows.count:
                first = self.invalid_rows.first_errors[0]
                what = f"none of its {self.invalid_rows.count} rows is good; the first: {first}"
                raise HarnessError(self.where, what, "mend the rows, or name other data")
            raise HarnessError(self.where, "the data set holds no rows", "give it at least one")

    def warnings(self) -> Iterator[str]:
        """What a person should know of the rows left out."""
        count, whole = self.invalid_rows.count, self.rows_read - self.rows_filtered
        if count:
            told = "" if self.invalid_rows.path is None else f"; see {self.invalid_rows.path}"
            yield f"{count} of {whole} rows of {self.name!r} are bad and left out{told}"
