"""Rows from Parquet files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from harness import Bad, HarnessError, Record, Source
from harness_sources import tables
from harness_sources.files import Files, no_rows, shown

BATCH = 1024


class Parquet(Source):
    """The rows of Parquet files, read `BATCH` at a time. A place is `file:[index]`, from 0."""

    def __init__(self, path: str | Sequence[str], storage: Mapping[str, Any]) -> None:
        self.files = Files(path, storage)

    def records(self) -> Iterator[Record | Bad]:
        """Every row with its index. Raises HarnessError for what is no Parquet file."""
        import pyarrow.parquet

        for path in self.files:
            record = None
            try:
                # Opened here, so that a missing file is told in the system's words and not in Arrow's.
                with self.files.open_whole(path) as raw:
                    batches = pyarrow.parquet.ParquetFile(raw).iter_batches(BATCH)
                    for record in tables.records(batches, shown(path)):
                        yield record
            except (pyarrow.ArrowException, MemoryError) as error:  # a damaged length may be any number
                what = f"is not a Parquet file that can be read: {error}"
                raise HarnessError(shown(path), what, "write it again") from None
            if record is None:
                raise no_rows(path)
