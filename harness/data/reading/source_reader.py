"""One pass over a source: raw rows in, conversations out, one by one; what is left out is counted and named.

Knows the order of the steps: head, filter, columns, form, conversation. Holds the first rows alone in memory.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping
from contextlib import closing
from itertools import chain, islice
from typing import Any

from harness.data.reading.conversation import BadRow
from harness.data.reading.rejected_rows import Rejects
from harness.data.reading.row_formats import Columns, conversation, detect
from harness.errors import HarnessError
from harness.interfaces.source import Source
from harness.types import Bad, Example, Progress, Record


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


DETECTED = 1000
"""Rows that the form is told from; every later one is held against it."""

TOLD = 10_000
"""Rows between two reports of progress."""


class Reading:
    """One pass over a source. options: of the source, the core's filled in. name: the source's, for errors.

    Once `examples` is exhausted: form, as told or as given; read: raw rows = used + filtered + rejects.count.
    """

    def __init__(
        self, source: Source, options: Mapping[str, Any], name: str, rejects: Rejects, progress: Progress
    ) -> None:
        self.source, self.name, self.rejects, self.progress = source, name, rejects, progress
        self.where = f"sources.{name}"
        self.form, self.train_on, self.head = options["form"], options["train_on"], options["head"]
        self.allowed = options["rejected"]
        self.columns = Columns(options["columns"], self.where)
        self.filter = Filter(options["filter"], self.where)
        self.read = self.used = self.filtered = 0

    def examples(self) -> Iterator[Example]:
        """The conversations, one by one."""
        records = self._kept()
        with closing(records):
            first, top = self._first(records)
            for record in chain(first, records):
                if isinstance(record, Bad):
                    self.rejects.add(record)
                    continue
                try:
                    row = self.columns.renamed(record.data)
                    example = conversation(row, self.form, self.train_on, record.place)
                except BadRow as error:
                    self.rejects.add(Bad(record.place, error.what, error.hint, record.data))
                    continue
                self.used += 1
                yield example
            self.columns.check(top, needed=False)
        self.progress("read", self.read, self.read, self.name, "rows")

    def _first(self, records: Iterator[Record | Bad]) -> tuple[list[Record | Bad], Record | None]:
        """The rows that the form is told from, and the first good one; bad rows before the first good one are taken in.

        Raises HarnessError when the form cannot be told, or none of the rows has a column that `columns` names.
        """
        while first := list(islice(records, DETECTED)):
            good = [record for record in first if isinstance(record, Record)]
            if good:
                renamed = [Record(record.place, self.columns.renamed(record.data)) for record in good]
                self.columns.check(good[0], needed=True)
                if self.form == "auto":
                    self.form = detect(renamed, self.where)
                self.columns.check_read(self.form)
                return first, good[0]
            for record in first:
                assert isinstance(record, Bad)
                self.rejects.add(record)
        return [], None

    def _kept(self) -> Generator[Record | Bad, None, None]:
        """The raw rows, `head` of them at most, without those that the filter leaves aside."""
        records = self.source.records()
        try:
            for record in islice(records, self.head):
                self.read += 1
                if not self.read % TOLD:
                    self.progress("read", self.read, 0, self.name, "rows")
                if isinstance(record, Bad) or (isinstance(record, Record) and self.filter.keeps(record)):
                    yield record
                elif isinstance(record, Record):
                    self.filtered += 1
                else:
                    what = f"its source yields a {type(record).__name__}, where a Record is due"
                    raise HarnessError(self.where, what, "mend the plugin that brings it")
        finally:
            if hasattr(records, "close"):
                records.close()  # so that its files are closed now

    def check(self) -> None:
        """Raise HarnessError when too many rows are bad, or when no row is left."""
        self.rejects.check(self.read - self.filtered, self.allowed, self.where)
        if not self.used:
            if self.filtered:
                raise self.filter.keeps_none(self.read)
            if self.rejects.count:
                what = f"none of its {self.rejects.count} rows is good; the first: {self.rejects.shown[0]}"
                raise HarnessError(self.where, what, "mend the rows, or name other data")
            raise HarnessError(self.where, "the data set holds no rows", "give it at least one")

    def warnings(self) -> Iterator[str]:
        """What a person should know of the rows left out."""
        count, whole = self.rejects.count, self.read - self.filtered
        if count:
            told = "" if self.rejects.path is None else f"; see {self.rejects.path}"
            yield f"{count} of {whole} rows of {self.name!r} are bad and left out{told}"
