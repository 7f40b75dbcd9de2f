"""Rows from Parquet files, Arrow files, and the folders that `datasets.save_to_disk` writes."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from harness import Component, ComponentExample, HarnessError, InvalidRecord, Record, Source
from harness.utils.json_depth import load_json
from harness_sources import files
from harness_sources.files import (
    MAX_ROW_BYTES,
    ROW_TOO_LARGE,
    SourceFiles,
    as_harness_errors,
    display_path,
    file_options,
    no_rows_error,
)

COMPONENTS: dict[str, Component] = {
    "parquet": Component(
        summary="Reads rows from a Parquet file, in batches.",
        factory="harness_sources.arrow:ParquetSource",
        options=file_options("A Parquet file"),
        required=("path",),
        example=ComponentExample(lambda folder: {"path": _write_example(folder / "rows.parquet")}, rows=2),
    ),
    "arrow": Component(
        summary="Reads rows from Arrow files, or from a folder written by datasets' save_to_disk.",
        factory="harness_sources.arrow:ArrowSource",
        options=file_options(
            "An Arrow file, or the folder of a saved dataset",
            split={
                "type": ["string", "null"],
                "default": None,
                "description": "The split of a folder that has several. null: the folder has one dataset.",
            },
        ),
        required=("path",),
        example=ComponentExample(lambda folder: {"path": _write_example(folder / "rows.arrow")}, rows=2),
    ),
}

ARROW_MAGIC = b"ARROW1"
"""The first bytes of Arrow's file format. Arrow's stream format, which datasets writes, begins otherwise."""

PARQUET_BATCH_SIZE = 1024
"""Rows read at once."""

_DAMAGE_ERRORS = (ValueError, LookupError, TypeError, ArithmeticError, AttributeError, SystemError, MemoryError)
"""What pyarrow raises for a damaged file besides its own errors: it may give any length, offset or name."""

_VALUE_ERRORS = (ValueError, OverflowError, SystemError)
"""What pyarrow raises for a value that Python cannot represent, or whose offset is damaged."""


class ArrowSource(Source):
    """The rows of Arrow files, read in batches. A location is `file:[index]`, from 0 within each file."""

    def __init__(self, path: str | Sequence[str], storage: Mapping[str, Any], split: str | None) -> None:
        """Create the source.

        Args:
            path: See `SourceFiles`; a folder is one that `datasets.save_to_disk` has written.
            storage: See `SourceFiles`.
            split: The split to read, of a folder that has several.
        """
        self.files, self.split = SourceFiles(path, storage), split

    def records(self) -> Iterator[Record | InvalidRecord]:
        """Yield every row with its index.

        Raises:
            HarnessError: A path is not an Arrow file or the folder of a dataset.
        """
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
            with self.files.open_raw(path) as stream:
                yield from iter_records(_iter_batches(stream), display_path(path))
        except (pyarrow.ArrowException, *_DAMAGE_ERRORS) as error:
            what = f"is not a readable Arrow file: {error}"
            raise HarnessError(display_path(path), what, "write it again, e.g. with datasets' save_to_disk") from None

    def _is_folder(self, path: str) -> bool:
        if "://" not in path:
            return os.path.isdir(path)
        with as_harness_errors(path):
            return files.is_folder(path, self.files.storage)

    def _data_files(self, folder: str) -> list[str]:
        """Return the files of a saved dataset, in its order."""
        folder = self._split_folder(folder.rstrip("/"))
        state = self._read_json(f"{folder}/state.json")
        entries = state.get("_data_files") if state is not None else None
        if not isinstance(entries, list):
            raise _not_a_dataset_error(folder)
        names = [entry.get("filename") if isinstance(entry, dict) else None for entry in entries]
        if not names or not all(isinstance(name, str) and os.path.basename(name) == name for name in names):
            raise _not_a_dataset_error(folder)
        return [f"{folder}/{name}" for name in names]

    def _split_folder(self, folder: str) -> str:
        """Return the folder of the requested split, or the folder itself where it has one dataset."""
        dataset_dict = self._read_json(f"{folder}/dataset_dict.json")
        if dataset_dict is None:
            if self.split is not None:
                what = f"has one dataset and no split {self.split!r}"
                raise HarnessError(display_path(folder), what, "remove the source's option 'split'")
            return folder
        names = dataset_dict.get("splits")
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise _not_a_dataset_error(folder)
        if self.split not in names:
            what = f"has the splits {', '.join(names)}" + (f" and no {self.split!r}" if self.split else "")
            hint = f"""name one of them, e.g. "split": "{names[0] if names else ""}\""""
            raise HarnessError(display_path(folder), what, hint)
        return f"{folder}/{self.split}"

    def _read_json(self, path: str) -> dict[str, Any] | None:
        """Return the JSON object of a file of the folder, or None if there is no such file or object."""
        try:
            with files.open_stream(path, self.files.storage) as stream:
                document = load_json(stream.read())
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise HarnessError(display_path(path), f"cannot be read: {error}", "write the dataset again") from None
        return document if isinstance(document, dict) else None


class ParquetSource(Source):
    """The rows of Parquet files, read `PARQUET_BATCH_SIZE` at a time. A location is `file:[index]`, from 0."""

    def __init__(self, path: str | Sequence[str], storage: Mapping[str, Any]) -> None:
        """Create the source; see `SourceFiles` for path and storage."""
        self.files = SourceFiles(path, storage)

    def records(self) -> Iterator[Record | InvalidRecord]:
        """Yield every row with its index.

        Raises:
            HarnessError: A file is not a Parquet file.
        """
        import pyarrow.parquet

        for path in self.files:
            record = None
            try:
                # Opened here and not by Arrow, so that the error for a missing file is the usual one.
                with self.files.open_raw(path) as stream:
                    batches = pyarrow.parquet.ParquetFile(stream).iter_batches(PARQUET_BATCH_SIZE)
                    for record in iter_records(batches, display_path(path)):
                        yield record
            except (pyarrow.ArrowException, *_DAMAGE_ERRORS) as error:
                what = f"is not a readable Parquet file: {error}"
                raise HarnessError(display_path(path), what, "write it again") from None
            if record is None:
                raise no_rows_error(path)


def iter_records(batches: Iterable[Any], file: str, first_index: int = 0) -> Iterator[Record | InvalidRecord]:
    """Yield the rows of record batches, each with the location `file:[index]`.

    A null field of an object in a row is dropped, because Arrow gives every object of a column the fields of all of
    them. The arguments of one tool would appear, as nulls, in the calls of all others.

    A value of the type `arrow.json`, in which datasets stores values of mixed types, is parsed at any depth; its own
    nulls stay.

    A row with a value that Python cannot represent (text that is not UTF-8, a date after the year 9999) is invalid.

    Args:
        batches: The record batches of pyarrow.
        file: The file's name in locations.
        first_index: The index of the first row.

    Raises:
        HarnessError: Two columns have the same name.
    """
    index = first_index
    for batch in batches:
        columns = batch.schema.names
        repeated = next((column for column in columns if columns.count(column) > 1), None)
        if repeated is not None:
            raise HarnessError(file, f"has two columns called {repeated!r}", "rename one of them")
        nested_types = {field.name: field.type for field in batch.schema if _needs_conversion(field.type)}
        for row in _iter_batch_rows(batch):
            location = f"{file}:[{index}]"
            index += 1
            if isinstance(row, str):
                yield InvalidRecord(location, f"has a value that cannot be read: {row}", "fix the row", None)
                continue
            try:
                converted = {column: convert_nested(row[column], type_) for column, type_ in nested_types.items()}
            except ValueError as error:
                yield InvalidRecord(location, f"has a value of the type JSON that is not JSON: {error}", "fix it", row)
            else:
                yield Record(location, {**row, **converted})


def _iter_batch_rows(batch: Any) -> Iterator[dict[str, Any] | str]:
    """Yield the rows of a batch, or an error text for a row that cannot be read."""
    if batch.nbytes <= MAX_ROW_BYTES:
        try:
            rows = batch.to_pylist()
        except _VALUE_ERRORS:
            pass  # one row has such a value: read each one separately
        else:
            yield from rows
            return
    for row_index in range(batch.num_rows):
        row = batch.slice(row_index, 1)
        if row.nbytes > MAX_ROW_BYTES:
            yield f"the row {ROW_TOO_LARGE[0]}"
            continue
        try:
            yield row.to_pylist()[0]
        except _VALUE_ERRORS as error:
            yield str(error)


def _is_json(arrow_type: Any) -> bool:
    return getattr(arrow_type, "extension_name", None) == "arrow.json"


def _is_list(arrow_type: Any) -> bool:
    from pyarrow import types

    return bool(
        types.is_list(arrow_type)
        or types.is_large_list(arrow_type)
        or types.is_fixed_size_list(arrow_type)
        or types.is_list_view(arrow_type)
        or types.is_large_list_view(arrow_type)
    )


def _needs_conversion(arrow_type: Any) -> bool:
    """Return whether a type of Arrow is a struct or JSON, or a list with one of them in it."""
    from pyarrow import types

    if types.is_struct(arrow_type) or _is_json(arrow_type):
        return True
    return _is_list(arrow_type) and _needs_conversion(arrow_type.value_type)


def convert_nested(value: Any, arrow_type: Any, *, parse_json: bool = True) -> Any:
    """Return a value of a row without the null fields of the structs in it, and with parsed JSON.

    Args:
        value: The value as pyarrow gives it.
        arrow_type: Its type.
        parse_json: Whether a value of the type `arrow.json` is still text.

    Raises:
        ValueError: A value of the type `arrow.json` is not JSON, or nested too deep.
    """
    from pyarrow import types

    if value is None:
        return None
    if _is_json(arrow_type):
        return load_json(value) if parse_json and isinstance(value, str) else value
    if types.is_struct(arrow_type):
        return {
            name: convert_nested(inner, arrow_type.field(name).type, parse_json=parse_json)
            for name, inner in value.items()
            if inner is not None
        }
    if _is_list(arrow_type):
        return [convert_nested(inner, arrow_type.value_type, parse_json=parse_json) for inner in value]
    return value


def _not_a_dataset_error(folder: str) -> HarnessError:
    hint = "name the files in it, e.g. folder/*.arrow"
    return HarnessError(display_path(folder), "is not a folder written by datasets' save_to_disk", hint)


def _iter_batches(stream: BinaryIO) -> Iterator[Any]:
    import pyarrow

    if stream.read(len(ARROW_MAGIC)) == ARROW_MAGIC:
        arrow_file = pyarrow.ipc.open_file(stream)
        batches = (arrow_file.get_batch(batch_index) for batch_index in range(arrow_file.num_record_batches))
    else:
        stream.seek(0)
        batches = iter(pyarrow.ipc.open_stream(stream))
    for batch in batches:
        _check_offsets(batch)
        yield batch


def _check_offsets(batch: Any) -> None:
    """Refuse a batch with an offset or index outside its buffers: to read it can crash the process.

    Text, dates, times and decimals are not checked, also within lists and structs: a bad one makes one row invalid.

    Raises:
        pyarrow.ArrowException: The batch is damaged.
    """
    batch.validate()
    for column in batch.columns:
        _check_column(column)


def _check_column(column: Any) -> None:
    import pyarrow.compute

    if isinstance(column, pyarrow.ExtensionArray):
        column = column.storage
    if pyarrow.types.is_dictionary(column.type):
        bounds = pyarrow.compute.min_max(column.indices).as_py()
        if bounds["min"] is not None and not 0 <= bounds["min"] <= bounds["max"] < len(column.dictionary):
            raise pyarrow.ArrowInvalid("an index is outside the dictionary")
        column = column.dictionary
    column.view(_without_rules(column.type)).validate(full=True)


def _without_rules(arrow_type: Any) -> Any:
    """Return a type of the same layout without rules for its values, such as bytes in place of text."""
    import pyarrow
    from pyarrow import types

    plain = {
        pyarrow.string(): pyarrow.binary(),
        pyarrow.large_string(): pyarrow.large_binary(),
        pyarrow.date64(): pyarrow.int64(),
    }
    if arrow_type in plain:
        return plain[arrow_type]
    if types.is_time32(arrow_type) or types.is_time64(arrow_type):
        return pyarrow.int32() if types.is_time32(arrow_type) else pyarrow.int64()
    if types.is_decimal128(arrow_type) or types.is_decimal256(arrow_type):
        return pyarrow.binary(arrow_type.byte_width)
    if isinstance(arrow_type, pyarrow.BaseExtensionType):
        return _without_rules(arrow_type.storage_type)
    if types.is_struct(arrow_type):
        return pyarrow.struct([field.with_type(_without_rules(field.type)) for field in arrow_type])
    if types.is_list(arrow_type) or types.is_large_list(arrow_type):
        make = pyarrow.list_ if types.is_list(arrow_type) else pyarrow.large_list
        return make(arrow_type.value_field.with_type(_without_rules(arrow_type.value_type)))
    return arrow_type


def _write_example(file: Path) -> str:
    """Write two rows in the format that the file's name says, and return its path."""
    import pyarrow
    from pyarrow import parquet

    table = pyarrow.table({"a": [1, 2]})
    if file.suffix == ".parquet":
        parquet.write_table(table, file)
    else:
        with pyarrow.OSFile(str(file), "wb") as sink, pyarrow.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table)
    return str(file)
