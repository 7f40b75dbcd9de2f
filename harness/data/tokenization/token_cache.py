"""The cache of tokenized rows: `rows/` in the cache folder, one file for each entry, named by its key.

A file is written under a temporary name in the same folder and renamed in one step, so concurrent runs are safe: the
later file, which has the same content, replaces the earlier one. The least recently used files beyond
`MAX_CACHE_BYTES` are removed.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from harness.data.tokenization import token_file
from harness.data.tokenization.token_file import TokenFile, TokenFileWriter
from harness.utils.cache_dir import cache_root

MAX_CACHE_BYTES = 20 * 2**30
"""Maximum size of the cache in bytes."""

STALE_AFTER_SECONDS = 24 * 3600
"""Age in seconds after which an unfinished file belongs to a run that died."""


def token_cache_folder() -> Path:
    """Return the folder of the entries, which may not exist yet."""
    return cache_root() / "rows"


def load_cached_tokens(key: str, source: str) -> TokenFile | None:
    """Load an entry and mark it as the most recently used.

    Returns:
        The entry; None when it does not exist or is damaged.
    """
    path = _entry_path(key)
    entry = token_file.read_token_file(path, key, source)
    if entry is not None:
        with contextlib.suppress(OSError):  # the cache may be read-only
            os.utime(path)
    return entry


def ensure_cache_folder() -> tuple[Path | None, str | None]:
    """Create the cache folder for the files of a run.

    Returns:
        The folder, or None with the reason when it is not writable.
    """
    try:
        token_cache_folder().mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=token_cache_folder()):
            return token_cache_folder(), None
    except OSError as error:
        return None, error.strerror or str(error)


def create_cache_writer() -> tuple[TokenFileWriter, str | None]:
    """Create a writer for a new entry.

    Returns:
        A writer on the cache's disk, or elsewhere with the reason when the cache is not writable.
    """
    try:
        token_cache_folder().mkdir(parents=True, exist_ok=True)
    except OSError as error:
        return TokenFileWriter(None), error.strerror or str(error)
    writer = TokenFileWriter(token_cache_folder())
    return (writer, None) if writer.write_error is None else (TokenFileWriter(None), writer.write_error)


def save_to_cache(token_writer: TokenFileWriter, key: str, metadata: Mapping[str, Any]) -> str | None:
    """Save what was written as an entry.

    Returns:
        The reason when the entry cannot be saved, else None.
    """
    path = _entry_path(key)
    try:
        token_writer.save_as(path, key, metadata)
    except OSError as error:
        return error.strerror or str(error)
    trim_cache(path)
    return None


def trim_cache(newest: Path) -> None:
    """Remove leftovers of dead runs, and the least recently used entries beyond `MAX_CACHE_BYTES`.

    Args:
        newest: The entry saved last, which is never removed.
    """
    entries, bytes_left = [], MAX_CACHE_BYTES
    with contextlib.suppress(OSError):
        for item in os.scandir(newest.parent):
            with contextlib.suppress(OSError):  # already removed: another run also trims
                status = item.stat()
                if item.name.endswith(".part"):
                    if time.time() - status.st_mtime > STALE_AFTER_SECONDS:
                        os.unlink(item.path)
                elif item.name.endswith(".rows"):
                    entries.append((item.path != str(newest), -status.st_mtime, status.st_size, item.path))
        for _, _, size, path in sorted(entries):
            bytes_left -= size
            if bytes_left < 0 and path != str(newest):
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(path)  # a run that reads it keeps its mapping


def _entry_path(key: str) -> Path:
    return token_cache_folder() / f"{key}.rows"
