"""A file of tokenized rows, written front to back and read from its end.

Layout::

    tokens            (T,) int32, see `tokenized_rows`
    columns           one (N,) array after the other, see `COLUMN_DTYPES`
    description       JSON: format, key, counts, checksums, metadata
    its length        8 bytes, little-endian
    magic             8 bytes

The number of rows is unknown until the end, so the description is last. A truncated or changed file, or one of another
version, is rejected. When the disk is full, the remaining rows stay in memory.
"""

from __future__ import annotations

import json
import mmap
import os
import sys
import tempfile
import weakref
import zlib
from array import array
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness.data.tokenization.tokenized_rows import StoredTokens, TokenizedRows, TokenStorage, row_offsets

FORMAT_VERSION = 1
"""Version of the file format. Files of another version are rejected."""

MAGIC = b"SFT-ROWS"

COLUMN_DTYPES = {
    "ids": np.uint64,
    "example_indices": np.int64,
    "lengths": np.int32,
    "loss_tokens": np.int32,
    "tokens_cut": np.int32,
}
"""Column -> type, see `TokenizedRows` and `TokenFile`."""

_COLUMN_TYPECODES = {"ids": "Q", "example_indices": "q", "lengths": "i", "loss_tokens": "i", "tokens_cut": "i"}

CHECKSUM_BLOCK_BYTES = 1 << 22
"""Bytes read at once to compute a checksum."""


@dataclass(frozen=True)
class TokenFile:
    """The content of a file of N rows.

    Attributes:
        rows: The rows.
        example_indices: (N,) int64, the index of each row among the examples.
        tokens_cut: (N,) int32, tokens that truncation removed from each row.
        metadata: Small values by name.
    """

    rows: TokenizedRows
    example_indices: NDArray[np.int64]
    tokens_cut: NDArray[np.int32]
    metadata: Mapping[str, Any]


class TokenFileWriter:
    """Writes rows batch by batch into a temporary file, which is deleted unless it is saved.

    Attributes:
        write_error: Why the disk took no more rows; None while it does.
        path: Where the file is; None when it could not be created.
    """

    def __init__(self, folder: Path | None) -> None:
        """Create the file.

        Args:
            folder: An existing folder for the file; None: the system's temporary folder.
        """
        self.write_error: str | None = None
        self._columns = {name: array(code) for name, code in _COLUMN_TYPECODES.items()}
        self._bytes_written = self._checksum = self._rows_on_disk = 0
        self._tokens_in_memory: list[StoredTokens] = []
        self._file = -1
        self.path: Path | None = None
        try:
            self._file, name = tempfile.mkstemp(".part", ".", folder)
            self.path = Path(name)
            self._close = weakref.finalize(self, _delete_file, self._file, self.path)
        except OSError as error:
            self.write_error = _error_text(error)

    @property
    def has_rows_in_memory(self) -> bool:
        """Whether rows are held in memory because the disk did not take them."""
        return bool(self._tokens_in_memory)

    def add_rows(self, tokens: StoredTokens, columns: Mapping[str, list[int]]) -> None:
        """Append rows.

        Args:
            tokens: The stored tokens, row after row.
            columns: For each of `COLUMN_DTYPES`, one number for each row.
        """
        if self.write_error is None:
            data = np.ascontiguousarray(tokens).data.cast("B")
            try:
                _append_bytes(self._file, data)
                self._checksum = zlib.crc32(data, self._checksum)
                self._bytes_written += len(data)
                self._rows_on_disk += len(columns["ids"])
            except OSError as error:
                self.write_error = _error_text(error)
        if self.write_error is not None:
            self._tokens_in_memory.append(tokens)
        for name, values in self._columns.items():
            values.extend(columns[name])

    def save_as(self, path: Path, key: str, metadata: Mapping[str, Any]) -> None:
        """Finish the file and rename it in one step, without waiting for the disk.

        A file torn by a crash is detected by its checksums.

        Args:
            path: The file's new path, on the same disk.
            key: The key that `read_token_file` compares.
            metadata: Small values by name, as JSON.

        Raises:
            OSError: When the file cannot be finished or renamed. The rows stay readable.
        """
        if self.write_error is not None:
            raise OSError(self.write_error)
        assert self.path is not None
        columns = b"".join(values.tobytes() for values in self._columns.values())
        description = {
            "format": FORMAT_VERSION,
            "key": key,
            "order": sys.byteorder,
            "rows": len(self._columns["ids"]),
            "tokens": self._bytes_written // 4,
            "checksums": [self._checksum, zlib.crc32(columns)],
            "facts": dict(metadata),
        }
        text = json.dumps(description).encode()
        umask = os.umask(0)
        os.umask(umask)
        try:
            _append_bytes(self._file, memoryview(b"".join((columns, text, len(text).to_bytes(8, "little"), MAGIC))))
            os.fchmod(self._file, 0o666 & ~umask)  # only the owner may read a temporary file
            os.replace(self.path, path)
        except OSError as error:
            self.write_error = _error_text(error)
            raise
        self.path = path
        self._close.detach()
        weakref.finalize(self, os.close, self._file)

    def to_token_file(self, source: str, metadata: Mapping[str, Any]) -> TokenFile:
        """Return all rows that were added, readable as long as the result lives."""
        columns = {name: np.array(values, COLUMN_DTYPES[name]) for name, values in self._columns.items()}
        on_disk = _map_tokens(self._file, self._bytes_written // 4)
        in_memory = np.concatenate([np.empty(0, np.int32), *self._tokens_in_memory])
        rows_per_store = (self._rows_on_disk, len(columns["ids"]) - self._rows_on_disk)
        return _build_token_file([on_disk, in_memory], rows_per_store, columns, source, metadata)


def read_token_file(path: Path, key: str, source: str) -> TokenFile | None:
    """Read the rows of a file. Its tokens are memory-mapped, not read.

    Args:
        path: The file.
        key: The key that the file must have.
        source: The source name that the rows get.

    Returns:
        The rows; None when the file does not exist, is damaged, or has another version or key.
    """
    try:
        file = os.open(path, os.O_RDONLY)
    except OSError:
        return None
    try:
        file_size = os.fstat(file).st_size
        text_end = file_size - 8 - len(MAGIC)
        text_size = int.from_bytes(os.pread(file, 8, text_end), "little") if text_end >= 0 else 0
        if text_end < text_size or os.pread(file, len(MAGIC), file_size - len(MAGIC)) != MAGIC:
            return None
        description = json.loads(os.pread(file, text_size, text_end - text_size))
        num_rows, num_tokens = description["rows"], description["tokens"]
        columns_size = num_rows * sum(np.dtype(dtype).itemsize for dtype in COLUMN_DTYPES.values())
        if num_tokens * 4 + columns_size + text_size != text_end:
            return None
        if (description["format"], description["key"], description["order"]) != (FORMAT_VERSION, key, sys.byteorder):
            return None
        checksums = [_checksum(file, 0, num_tokens * 4), _checksum(file, num_tokens * 4, columns_size)]
        if description["checksums"] != checksums:
            return None
        data, offset = os.pread(file, columns_size, num_tokens * 4), 0
        columns = {}
        for name, dtype in COLUMN_DTYPES.items():
            columns[name] = np.frombuffer(data, dtype, num_rows, offset).copy()
            offset += columns[name].nbytes
        if int(columns["lengths"].sum(dtype=np.int64)) != num_tokens:
            return None
        return _build_token_file([_map_tokens(file, num_tokens)], (num_rows,), columns, source, description["facts"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    finally:
        os.close(file)


def _build_token_file(
    stores: list[StoredTokens],
    rows_per_store: tuple[int, ...],
    columns: Mapping[str, NDArray[Any]],
    source: str,
    metadata: Mapping[str, Any],
) -> TokenFile:
    """Combine stores and columns. rows_per_store: number of consecutive rows in each store."""
    lengths, offsets, first = columns["lengths"], [], 0
    for count in rows_per_store:
        offsets.append(row_offsets(lengths[first : first + count]))
        first += count
    store_indices = np.repeat(np.arange(len(rows_per_store), dtype=np.uint16), rows_per_store)
    rows = TokenizedRows(
        TokenStorage(tuple(stores), store_indices, np.concatenate(offsets)),
        ids=columns["ids"],
        lengths=lengths,
        loss_tokens=columns["loss_tokens"],
        source_indices=np.zeros(len(lengths), np.uint16),
        source_names=(source,),
    )
    return TokenFile(rows, columns["example_indices"], columns["tokens_cut"], metadata)


def _map_tokens(file: int, num_tokens: int) -> StoredTokens:
    if not num_tokens:
        return np.empty(0, np.int32)
    # The mapping keeps the file readable after it is closed, renamed or removed.
    return np.frombuffer(mmap.mmap(file, num_tokens * 4, access=mmap.ACCESS_READ), np.int32)


def _append_bytes(file: int, data: memoryview) -> None:
    """Write all of the data at the end of the file, or nothing."""
    begin = position = os.lseek(file, 0, os.SEEK_CUR)
    try:
        while position - begin < len(data):
            position += os.write(file, data[position - begin :])
    except OSError:
        os.ftruncate(file, begin)
        os.lseek(file, begin, os.SEEK_SET)
        raise


def _checksum(file: int, begin: int, size: int) -> int:
    """Return the CRC-32 of a part of a file; -1 when the file is shorter."""
    checksum, position = 0, begin
    while position < begin + size:
        block = os.pread(file, min(CHECKSUM_BLOCK_BYTES, begin + size - position), position)
        if not block:
            return -1
        checksum, position = zlib.crc32(block, checksum), position + len(block)
    return checksum


def _delete_file(file: int, path: Path) -> None:
    os.close(file)
    path.unlink(missing_ok=True)


def _error_text(error: OSError) -> str:
    return error.strerror or str(error)
