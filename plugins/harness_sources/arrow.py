"""Rows from Arrow files, and from the folders that `datasets.save_to_disk` writes."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, BinaryIO

from harness import HarnessError, InvalidRecord, Record, Source
from harness_sources import files
from harness_sources.files import SourceFiles, as_harness_errors, display_path, no_rows_error


def iter_records(batches: Iterable[Any], file: str, first_index: int = 0) -> Iterator[Record | InvalidRecord]:
    """The rows of record batches. file: as shown. first_index: index of the first row. A place is `file:[index]`.

    A field of an object in a row that is null is left out: Arrow gives every object of a column the fields of all of
    them, so that one tool's arguments would turn up, as nulls, in the calls of all others.
    A row with a value that Python cannot hold (text that is not UTF-8, a date beyond the year 9999) is a bad row.
    Raises HarnessError for two columns of one name.
    """
    index = first_index
    for batch in batches:
        names = batch.schema.names
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise HarnessError(file, f"has two columns called {twice!r}", "rename one of them")
        nested = [field.name for field in batch.schema if _contains_struct(field.type)]
        for row in _iter_batch_rows(batch):
            place = f"{file}:[{index}]"
            if isinstance(row, str):
                yield InvalidRecord(place, f"holds a value that cannot be read: {row}", "mend the row", None)
            else:
                for name in nested:
                    row[name] = drop_null_fields(row[name])
                yield Record(place, row)
            index += 1


def _iter_batch_rows(batch: Any) -> Iterator[dict[str, Any] | str]:
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


def _contains_struct(arrow_type: Any) -> bool:
    """Whether a type of Arrow is a struct, or one of its items is."""
    from pyarrow import types

    if types.is_struct(arrow_type):
        return True
    lists = types.is_list(arrow_type) or types.is_large_list(arrow_type) or types.is_fixed_size_list(arrow_type)
    return lists and _contains_struct(arrow_type.value_type)


def drop_null_fields(value: Any) -> Any:
    """A value of a row without the null fields of the objects in it."""
    if isinstance(value, dict):
        return {key: drop_null_fields(one) for key, one in value.items() if one is not None}
    return [drop_null_fields(one) for one in value] if isinstance(value, list) else value


ARROW_MAGIC = b"ARROW1"
"""What a file of Arrow's file format begins with; one of its stream format, which datasets writes, does not."""


class ArrowSource(Source):
    """The rows of Arrow files, batch by batch. A place is `file:[index]`, from 0, within each file.

    split: which of the splits of a folder that holds several.
    """

    def __init__(self, path: str | Sequence[str], storage: Mapping[str, Any], split: str | None) -> None:
        self.files, self.split = SourceFiles(path, storage), split

    def records(self) -> Iterator[Record | InvalidRecord]:
        """Every row with its index. Raises HarnessError for what is no such file or folder."""
        for path in self.files:
            record = None
            for file in self._data_files(path) if self._is_folder(path) else [path]:
                for record in self._read_file(file):
                    yield record
            if record is None:
                raise no_rows_error(path)

    def _read_file(self, path: str) -> Iterator[Record | InvalidRecord]:
        import pyarrow

        try:
            with self.files.open_raw(path) as raw:
                yield from iter_records(_iter_batches(raw), display_path(path))
        except (pyarrow.ArrowException, MemoryError) as error:  # a damaged length may be any number
            what = f"is not an Arrow file that can be read: {error}"
            raise HarnessError(display_path(path), what, "write it again, e.g. with datasets' save_to_disk") from None

    def _is_folder(self, path: str) -> bool:
        if "://" not in path:
            return os.path.isdir(path)
        with as_harness_errors(path):
            return files.is_folder(path, self.files.storage)

    def _data_files(self, folder: str) -> list[str]:
        """The files of a saved dataset, in its order."""
        folder = folder.rstrip("/")
        splits = self._read_json(f"{folder}/dataset_dict.json")
        if splits is not None:
            names = splits.get("splits")
            if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
                raise _not_a_dataset_error(folder)
            if self.split not in names:
                what = f"holds the splits {', '.join(names)}" + (f" and no {self.split!r}" if self.split else "")
                raise HarnessError(
                    display_path(folder), what, f"""say which, e.g. "split": "{names[0] if names else ""}\""""
                )
            folder = f"{folder}/{self.split}"
        elif self.split is not None:
            hint = "leave the source's option 'split' out"
            raise HarnessError(display_path(folder), f"holds one data set, and no split {self.split!r}", hint)
        state = self._read_json(f"{folder}/state.json")
        parts = state.get("_data_files") if state is not None else None
        listed = parts if isinstance(parts, list) else []
        names = [part.get("filename") if isinstance(part, dict) else None for part in listed]
        if not names or not all(isinstance(name, str) and os.path.basename(name) == name for name in names):
            raise _not_a_dataset_error(folder)
        return [f"{folder}/{name}" for name in names]

    def _read_json(self, path: str) -> dict[str, Any] | None:
        """What a file of the folder says; None when there is none."""
        try:
            with files.open_stream(path, self.files.storage) as file:
                found = json.loads(file.read())
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise HarnessError(display_path(path), f"cannot be read: {error}", "write the data set again") from None
        return found if isinstance(found, dict) else None


def _not_a_dataset_error(folder: str) -> HarnessError:
    hint = "name the files in it, e.g. folder/*.arrow"
    return HarnessError(display_path(folder), "is no folder that datasets' save_to_disk has written", hint)


def _iter_batches(raw: BinaryIO) -> Iterator[Any]:
    import pyarrow

    if raw.read(len(ARROW_MAGIC)) == ARROW_MAGIC:
        table = pyarrow.ipc.open_file(raw)
        return (table.get_batch(number) for number in range(table.num_record_batches))
    raw.seek(0)
    return iter(pyarrow.ipc.open_stream(raw))


BATCH_SIZE = 1024


class ParquetSource(Source):
    """The rows of Parquet files, read `BATCH` at a time. A place is `file:[index]`, from 0."""

    def __init__(self, path: str | Sequence[str], storage: Mapping[str, Any]) -> None:
        self.files = SourceFiles(path, storage)

    def records(self) -> Iterator[Record | InvalidRecord]:
        """Every row with its index. Raises HarnessError for what is no Parquet file."""
        import pyarrow.parquet

        for path in self.files:
            record = None
            try:
                # Opened here, so that a missing file is told in the system's words and not in Arrow's.
                with self.files.open_raw(path) as raw:
                    batches = pyarrow.parquet.ParquetFile(raw).iter_batches(BATCH_SIZE)
                    for record in iter_records(batches, display_path(path)):
                        yield record
            except (pyarrow.ArrowException, MemoryError) as error:  # a damaged length may be any number
                what = f"is not a Parquet file that can be read: {error}"
                raise HarnessError(display_path(path), what, "write it again") from None
            if record is None:
                raise no_rows_error(path)
