"""The cache of tokenised rows: `rows/` in the cache folder, one file an entry, named by its key.

A file is written beside its place and moved there in one step, so that two runs at once do no harm: the later one's
file, which is the same, takes the place of the earlier one's. The least recently used files beyond `SIZE` are removed.
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
"""Bytes that the cache may take."""

STALE_AFTER_SECONDS = 24 * 3600
"""Seconds after which an unfinished file that nobody writes to is a leftover of a run that died."""


def token_cache_folder() -> Path:
    """Where the entries stand; it need not exist yet."""
    return cache_root() / "rows"


def load_cached_tokens(key: str, source: str) -> TokenFile | None:
    """The entry of this key, which becomes the most recently used; None when there is none, or when it is damaged."""
    path = _entry_path(key)
    found = token_file.read_token_file(path, key, source)
    if found is not None:
        with contextlib.suppress(OSError):  # of a cache that cannot be written
            os.utime(path)
    return found


def ensure_cache_folder() -> tuple[Path | None, str | None]:
    """The folder of the cache that takes files while a run uses them, and, where there is none, why."""
    try:
        token_cache_folder().mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=token_cache_folder()):
            return token_cache_folder(), None
    except OSError as error:
        return None, error.strerror or str(error)


def create_cache_writer() -> tuple[TokenFileWriter, str | None]:
    """What takes the rows of a new entry, on the cache's disk, and why it is not there, if it is not."""
    try:
        token_cache_folder().mkdir(parents=True, exist_ok=True)
    except OSError as error:
        return TokenFileWriter(None), error.strerror or str(error)
    made = TokenFileWriter(token_cache_folder())
    return (made, None) if made.write_error is None else (TokenFileWriter(None), made.write_error)


def save_to_cache(token_writer: TokenFileWriter, key: str, metadata: Mapping[str, Any]) -> str | None:
    """Make an entry of what was written; gives the reason when it cannot be made, None when all is well."""
    path = _entry_path(key)
    try:
        token_writer.save_as(path, key, metadata)
    except OSError as error:
        return error.strerror or str(error)
    trim_cache(path)
    return None


def trim_cache(newest: Path) -> None:
    """Remove the least recently used entries beyond `SIZE`, but not the newest, and what dead runs left behind."""
    entries, left = [], MAX_CACHE_BYTES
    with contextlib.suppress(OSError):
        for item in os.scandir(newest.parent):
            with contextlib.suppress(OSError):  # gone meanwhile: another run trims, too
                state = item.stat()
                if item.name.endswith(".part"):
                    if time.time() - state.st_mtime > STALE_AFTER_SECONDS:
                        os.unlink(item.path)
                elif item.name.endswith(".rows"):
                    entries.append((item.path != str(newest), -state.st_mtime, state.st_size, item.path))
        for _, _, size, path in sorted(entries):
            left -= size
            if left < 0 and path != str(newest):
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(path)  # a run that reads it keeps its mapping


def _entry_path(key: str) -> Path:
    return token_cache_folder() / f"{key}.rows"
