"""Rows from Parquet files."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from harness import HarnessError, Record, Source
from harness_sources.files import every, no_rows, reading, shown

BATCH = 1024


class Parquet(Source):
    """The rows of Parquet files, read `BATCH` at a time. A place is `file:[index]`, from 0."""

    def __init__(self, path: str | Sequence[str]) -> None:
        self.paths = every(path)

    def records(self) -> Iterator[Record]:
        """Every row with its index. Raises HarnessError for what is no Parquet file."""
        for path in self.paths:
            yield from _read(path)


def _read(path: Path) -> Iterator[Record]:
    import pyarrow
    import pyarrow.parquet

    file, index = shown(path), 0
    try:
        # Opened here, so that a missing file is told in the system's words and not in Arrow's.
        with reading(path), path.open("rb") as raw:
            for batch in pyarrow.parquet.ParquetFile(raw).iter_batches(BATCH):
                for row in batch.to_pylist():
                    yield Record(f"{file}:[{index}]", row)
                    index += 1
    except (pyarrow.ArrowInvalid, pyarrow.ArrowNotImplementedError) as error:
        raise HarnessError(file, f"is not a Parquet file that can be read: {error}", "write it again") from None
    if not index:
        raise no_rows(path)
