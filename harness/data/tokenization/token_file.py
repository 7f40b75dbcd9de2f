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

from harness.data.tokenization.tokenized_rows import Rows, Stored, begins_of

FORMAT = 1
"""Version of the file; another number makes every file a stranger."""

MARK = b"SFT-ROWS"

FACTS = {"ids": np.uint64, "kept": np.int64, "lengths": np.int32, "loss_tokens": np.int32, "cut": np.int32}
"""What is kept of each row: see `Rows`; kept: its index among the examples; cut: tokens lost to truncation."""

_CODES = {"ids": "Q", "kept": "q", "lengths": "i", "loss_tokens": "i", "cut": "i"}

BLOCK = 1 << 22
"""Bytes that are read at once to check a file."""


@dataclass(frozen=True)
class Contents:
    """What a file of rows holds. kept, cut: (N,), see `FACTS`. facts: small things, by name."""

    rows: Rows
    kept: NDArray[np.int64]
    cut: NDArray[np.int32]
    facts: Mapping[str, Any]


class Writer:
    """Takes rows batch by batch. failure: why the disk took no more, once it has refused; None until then.

    A file nobody has given a name vanishes with the process.
    """

    def __init__(self, folder: Path | None) -> None:
        """folder: where the file is made, which is there; None: where the system keeps such files."""
        self.failure: str | None = None
        self._facts = {name: array(code) for name, code in _CODES.items()}
        self._size = self._checksum = self._on_disk = 0
        self._memory: list[Stored] = []
        self._file = -1
        self.path: Path | None = None
        try:
            self._file, name = tempfile.mkstemp(".part", ".", folder)
            self.path = Path(name)
            self._close = weakref.finalize(self, _discard, self._file, self.path)
        except OSError as error:
            self.failure = _reason(error)

    @property
    def holds(self) -> bool:
        """Whether rows are held in memory, which the disk has not taken."""
        return bool(self._memory)

    def add(self, stored: Stored, facts: Mapping[str, list[int]]) -> None:
        """Rows: their tokens, one row after the other, and one number a row for each of `FACTS`."""
        if self.failure is None:
            data = np.ascontiguousarray(stored).data.cast("B")
            try:
                _write(self._file, data)
                self._checksum = zlib.crc32(data, self._checksum)
                self._size += len(data)
                self._on_disk += len(facts["ids"])
            except OSError as error:
                self.failure = _reason(error)
        if self.failure is not None:
            self._memory.append(stored)
        for name, values in self._facts.items():
            values.extend(facts[name])

    def keep(self, path: Path, key: str, facts: Mapping[str, Any]) -> None:
        """Finish the file and give it a name, in one step. Raises OSError; the rows stay readable all the same.

        Nothing waits for the disk: a file that a crash tears is told by its checksums.
        """
        if self.failure is not None:
            raise OSError(self.failure)
        assert self.path is not None
        tail = b"".join(values.tobytes() for values in self._facts.values())
        about = {
            "format": FORMAT,
            "key": key,
            "order": sys.byteorder,
            "rows": len(self._facts["ids"]),
            "tokens": self._size // 4,
            "checksums": [self._checksum, zlib.crc32(tail)],
            "facts": dict(facts),
        }
        text = json.dumps(about).encode()
        umask = os.umask(0)
        os.umask(umask)
        try:
            _write(self._file, memoryview(b"".join((tail, text, len(text).to_bytes(8, "little"), MARK))))
            os.fchmod(self._file, 0o666 & ~umask)  # a temporary file is its owner's alone
            os.replace(self.path, path)
        except OSError as error:
            self.failure = _reason(error)
            raise
        self.path = path
        self._close.detach()
        weakref.finalize(self, os.close, self._file)

    def contents(self, source: str, facts: Mapping[str, Any]) -> Contents:
        """All that was added, readable while it lives."""
        columns = {name: np.array(values, FACTS[name]) for name, values in self._facts.items()}
        first = _mapped(self._file, self._size // 4)
        second = np.concatenate([np.empty(0, np.int32), *self._memory])
        counts = (self._on_disk, len(columns["ids"]) - self._on_disk)
        return _contents([first, second], counts, columns, source, facts)


def read(path: Path, key: str, source: str) -> Contents | None:
    """The rows of a file, its tokens mapped and not read into memory. source: what their source is called.

    None when there is no such file, when it is damaged, or when it is of another version or has another key.
    """
    try:
        file = os.open(path, os.O_RDONLY)
    except OSError:
        return None
    try:
        end = os.fstat(file).st_size
        about_end = end - 8 - len(MARK)
        size = int.from_bytes(os.pread(file, 8, about_end), "little") if about_end >= 0 else 0
        if about_end < size or os.pread(file, len(MARK), end - len(MARK)) != MARK:
            return None
        about = json.loads(os.pread(file, size, about_end - size))
        rows, tokens = about["rows"], about["tokens"]
        tail_size = rows * sum(np.dtype(kind).itemsize for kind in FACTS.values())
        whole = tokens * 4 + tail_size + size == about_end
        if not whole or (about["format"], about["key"], about["order"]) != (FORMAT, key, sys.byteorder):
            return None
        if about["checksums"] != [_checksum(file, 0, tokens * 4), _checksum(file, tokens * 4, tail_size)]:
            return None
        tail, at = os.pread(file, tail_size, tokens * 4), 0
        columns = {}
        for name, kind in FACTS.items():
            columns[name] = np.frombuffer(tail, kind, rows, at).copy()
            at += columns[name].nbytes
        if int(columns["lengths"].sum(dtype=np.int64)) != tokens:
            return None
        return _contents([_mapped(file, tokens)], (rows,), columns, source, about["facts"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    finally:
        os.close(file)


def _contents(
    stores: list[Stored],
    counts: tuple[int, ...],
    columns: Mapping[str, NDArray[Any]],
    source: str,
    facts: Mapping[str, Any],
) -> Contents:
    """counts: how many of the rows stand in each store, in order."""
    lengths, begins, at = columns["lengths"], [], 0
    for count in counts:
        begins.append(begins_of(lengths[at : at + count]))
        at += count
    rows = Rows(
        stores,
        ids=columns["ids"],
        lengths=lengths,
        loss_tokens=columns["loss_tokens"],
        source=np.zeros(len(lengths), np.uint16),
        source_names=(source,),
        store=np.repeat(np.arange(len(counts), dtype=np.uint16), counts),
        begins=np.concatenate(begins),
    )
    return Contents(rows, columns["kept"], columns["cut"], facts)


def _mapped(file: int, tokens: int) -> Stored:
    if not tokens:
        return np.empty(0, np.int32)
    # The mapping keeps the file readable after it is closed, renamed or removed.
    return np.frombuffer(mmap.mmap(file, tokens * 4, access=mmap.ACCESS_READ), np.int32)


def _write(file: int, data: memoryview) -> None:
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
        block = os.pread(file, min(BLOCK, begin + size - at), at)
        if not block:
            return -1
        checksum, at = zlib.crc32(block, checksum), at + len(block)
    return checksum


def _discard(file: int, path: Path) -> None:
    os.close(file)
    path.unlink(missing_ok=True)


def _reason(error: OSError) -> str:
    return error.strerror or str(error)
