"""What the cache folder holds, and what is deleted from it by age or size."""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from harness.utils.cache_dir import cache_root, folder_size

KINDS = {
    "models": "converted models",
    "rows": "tokens of sources",
    "fisher": "Fisher information of ewc",
    "evaluations": "answers and likelihoods of base models",
    "tokenizers": "tokenizers without transformers",
    "digests": "checksums of large files",
    "weight-counts": "sizes of models",
    "bfloat16-speed": "speed of this CPU",
    "tools": "llama.cpp's converter",
    "tracebacks": "tracebacks of faults",
}
"""Folder in the cache -> what is in it. All of it is computed or downloaded again when it is needed."""

STALE_SECONDS = 24 * 3600
"""Age after which a draft or a lock is of a process that has ended."""


@dataclass(frozen=True)
class CacheEntry:
    """One entry of the cache.

    Attributes:
        kind: A key of `KINDS`.
        path: Its file or folder.
        size: Bytes.
        used: When it was used last, in seconds since the epoch.
        is_leftover: Whether it is a draft or a lock of a process that was killed.
    """

    kind: str
    path: Path
    size: int
    used: float
    is_leftover: bool


def list_entries() -> list[CacheEntry]:
    """Return the entries of the cache, the least recently used first."""
    return sorted(_iter_entries(), key=lambda entry: (entry.used, str(entry.path)))


def select_entries(
    entries: Sequence[CacheEntry], *, older_than: float | None = None, max_bytes: int | None = None
) -> list[CacheEntry]:
    """Return the entries to delete: leftovers, those that are too old, and the least recently used beyond a size.

    Args:
        entries: Entries, the least recently used first.
        older_than: Seconds since their last use; None: any age is kept.
        max_bytes: Bytes that remain at most; None: any size is kept.
    """
    now = time.time()
    selected = [
        entry
        for entry in entries
        if (entry.is_leftover and now - entry.used > STALE_SECONDS)
        or (older_than is not None and now - entry.used > older_than)
    ]
    if max_bytes is not None:
        remaining = [entry for entry in entries if entry not in selected]
        total = sum(entry.size for entry in remaining)
        for entry in remaining:
            if total <= max_bytes:
                break
            selected.append(entry)
            total -= entry.size
    return selected


def delete_entries(entries: Sequence[CacheEntry]) -> int:
    """Delete entries, and return the bytes that became free. A run that uses one at this moment computes it again."""
    freed = 0
    for entry in entries:
        with contextlib.suppress(OSError):
            if entry.path.is_dir():
                doomed = entry.path.with_name(f".{entry.path.name}.old-{os.getpid()}")
                entry.path.rename(doomed)  # so that nobody finds a part of it
                shutil.rmtree(doomed)
            else:
                entry.path.unlink()
            freed += entry.size
    return freed


def _iter_entries() -> Iterator[CacheEntry]:
    for kind in KINDS:
        folder = cache_root() / kind
        for path in folder.iterdir() if folder.is_dir() else ():
            with contextlib.suppress(OSError):  # deleted meanwhile
                status = path.stat()
                size = folder_size(path) if path.is_dir() else status.st_size
                used = max(status.st_mtime, _manifest_time(path))
                is_leftover = path.name.startswith(".") or path.suffix in (".lock", ".part")
                yield CacheEntry(kind, path, size, used, is_leftover)


def _manifest_time(path: Path) -> float:
    """Return when the manifest of a model was read last, as far as the disk records it."""
    with contextlib.suppress(OSError):
        return (path / "manifest.json").stat().st_atime
    return 0.0
