"""A file of tokenised rows: tokens as they come, then what is counted about the rows, then a description.

    tokens            (T,) int32, see `rows`
    facts             one array after the other, each (N,), see `FACTS`
    description       JSON: version, key, counts, checksums
    its length        8 bytes, little-endian
    mark              8 bytes

It is written from the front, since nobody knows how many rows there will be, and read from the back. A file that is cut
off, changed or of another version is no file of rows. When the disk takes no more, the rest stays in memory.
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

from harness.data.tokenization.tokenized_rows import StoredTokens, TokenizedRows, row_offsets

FORMAT_VERSION = 1
"""Version of the file; another number makes every file a stranger."""

MAGIC = b"SFT-ROWS"

COLUMN_DTYPES = {"ids": np.uint64, "kept": np.int64, "lengths": np.int32, "loss_tokens": np.int32, "cut": np.int32}
"""What is kept of each row: see `TokenizedRows`; kept: its index among the examples; cut: tokens lost to truncation."""

_COLUMN_TYPECODES = {"ids": "Q", "kept": "q", "lengths": "i", "loss_tokens": "i", "cut": "i"}

CHECKSUM_BLOCK_BYTES = 1 << 22
"""Bytes that are read at once to check a file."""


@dataclass(frozen=True)
class TokenFile:
    """What a file of rows holds. kept, cut: (N,), see `FACTS`. facts: small things, by name."""

    rows: TokenizedRows
    example_indices: NDArray[np.int64]
    tokens_cut: NDArray[np.int32]
    metadata: Mapping[str, Any]


class TokenFileWriter:
    """Takes rows batch by batch. failure: why the disk took no more, once it has refused; None until then.

    A file nobody has given a name vanishes with the process.
    """

    def __init__(self, folder: Path | None) -> None:
        """folder: where the file is made, which is there; None: where the system keeps such files."""
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
        """Whether rows are held in memory, which the disk has not taken."""
        return bool(self._tokens_in_memory)

    def add_rows(self, tokens: StoredTokens, columns: Mapping[str, list[int]]) -> None:
        """Rows: their tokens, one row after the other, and one number a row for each of `FACTS`."""
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
        """Finish the file and give it a name, in one step. Raises OSError; the rows stay readable all the same.

        Nothing waits for the disk: a file that a crash tears is told by its checksums.
        """
        if self.write_error is not None:
            raise OSError(self.write_error)
        assert self.path is not None
        tail = b"".join(values.tobytes() for values in self._columns.values())
        about = {
            "format": FORMAT_VERSION,
            "key": key,
            "order": sys.byteorder,
            "rows": len(self._columns["ids"]),
            "tokens": self._bytes_written // 4,
            "checksums": [self._checksum, zlib.crc32(tail)],
            "facts": dict(metadata),
        }
        text = json.dumps(about).encode()
        umask = os.umask(0)
        os.umask(umask)
        try:
            _append_bytes(self._file, memoryview(b"".join((tail, text, len(text).to_bytes(8, "little"), MAGIC))))
            os.fchmod(self._file, 0o666 & ~umask)  # a temporary file is its owner's alone
            os.replace(self.path, path)
        except OSError as error:
            self.write_error = _error_text(error)
            raise
        self.path = path
        self._close.detach()
        weakref.finalize(self, os.close, self._file)

    def to_token_file(self, source: str, metadata: Mapping[str, Any]) -> TokenFile:
        """All that was added, readable while it lives."""
        columns = {name: np.array(values, COLUMN_DTYPES[name]) for name, values in self._columns.items()}
        first = _map_tokens(self._file, self._bytes_written // 4)
        second = np.concatenate([np.empty(0, np.int32), *self._tokens_in_memory])
        counts = (self._rows_on_disk, len(columns["ids"]) - self._rows_on_disk)
        return _build_token_file([first, second], counts, columns, source, metadata)


def read_token_file(path: Path, key: str, source: str) -> TokenFile | None:
    """The rows of a file, its tokens mapped and not read into memory. source: what their source is called.

    None when there is no such file, when it is damaged, or when it is of another version or has another key.
    """
    try:
        file = os.open(path, os.O_RDONLY)
    except OSError:
        return None
    try:
        end = os.fstat(file).st_size
        about_end = end - 8 - len(MAGIC)
        size = int.from_bytes(os.pread(file, 8, about_end), "little") if about_end >= 0 else 0
        if about_end < size or os.pread(file, len(MAGIC), end - len(MAGIC)) != MAGIC:
            return None
        about = json.loads(os.pread(file, size, about_end - size))
        rows, tokens = about["rows"], about["tokens"]
        tail_size = rows * sum(np.dtype(kind).itemsize for kind in COLUMN_DTYPES.values())
        whole = tokens * 4 + tail_size + size == about_end
        if not whole or (about["format"], about["key"], about["order"]) != (FORMAT_VERSION, key, sys.byteorder):
            return None
        if about["checksums"] != [_checksum(file, 0, tokens * 4), _checksum(file, tokens * 4, tail_size)]:
            return None
        tail, at = os.pread(file, tail_size, tokens * 4), 0
        columns = {}
        for name, kind in COLUMN_DTYPES.items():
            columns[name] = np.frombuffer(tail, kind, rows, at).copy()
            at += columns[name].nbytes
        if int(columns["lengths"].sum(dtype=np.int64)) != tokens:
            return None
        return _build_token_file([_map_tokens(file, tokens)], (rows,), columns, source, about["facts"])
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
    """counts: how many of the rows stand in each store, in order."""
    lengths, begins, at = columns["lengths"], [], 0
    for count in rows_per_store:
        begins.append(row_offsets(lengths[at : at + count]))
        at += count
    rows = TokenizedRows(
        stores,
        ids=columns["ids"],
        lengths=lengths,
        loss_tokens=columns["loss_tokens"],
        source_indices=np.zeros(len(lengths), np.uint16),
        source_names=(source,),
        store_indices=np.repeat(np.arange(len(rows_per_store), dtype=np.uint16), rows_per_store),
        offsets=np.concatenate(begins),
    )
    return TokenFile(rows, columns["kept"], columns["cut"], metadata)


def _map_tokens(file: int, tokens: int) -> StoredTokens:
    if not tokens:
        return np.empty(0, np.int32)
    # The mapping keeps the file readable after it is closed, renamed or removed.
    return np.frombuffer(mmap.mmap(file, tokens * 4, access=mmap.ACCESS_READ), np.int32)


def _append_bytes(file: int, data: memoryview) -> None:
    """Write all of the data at the end of the file, or nothing."""
    begin = at = os.lseek(file, 0, os.SEEK_CUR)
    try:
        while at - begin < len(data):
            at += os.write(file, data[at - begin :])
    except OSError:
        os.ftruncate(file, begin)
        os.lseek(file, begin, os.SEEK_SET)
        raise


def _checksum(file: int, begin: int, size: int) -> int:
    checksum, at = 0, begin
    while at < begin + size:
        block = os.pread(file, min(CHECKSUM_BLOCK_BYTES, begin + size - at), at)
        if not block:
            return -1
        checksum, at = zlib.crc32(block, checksum), at + len(block)
    return checksum


def _delete_file(file: int, path: Path) -> None:
    os.close(file)
    path.unlink(missing_ok=True)


def _error_text(error: OSError) -> str:
    return error.strerror or str(error)
