"""The folders below which this user's runs are, so that a run is found by its name wherever `output` is.

A file in the cache has one absolute path a line, the newest last. Losing it costs nothing but the search.
"""

from __future__ import annotations

import contextlib
from pathlib import Path

from harness.utils.atomic_write import atomic_write
from harness.utils.cache_dir import cache_root

DEFAULT_OUTPUT = "runs"
MAX_FOLDERS = 50


def remember_output(folder: str | Path) -> None:
    """Remember a folder of runs. A cache that cannot be written costs only the search."""
    path = str(Path(folder).absolute())
    known = [line for line in _read() if line != path]
    file = _file()
    with contextlib.suppress(OSError, ValueError):
        file.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(file) as draft:
            draft.write_text("\n".join([*known, path][-MAX_FOLDERS:]) + "\n", encoding="utf-8")


def known_outputs() -> list[Path]:
    """Return `runs` in the working folder and the remembered folders that exist, the newest first, each once."""
    folders = [Path(DEFAULT_OUTPUT), *map(Path, reversed(_read()))]
    unique = {folder.resolve(): folder for folder in reversed(folders) if folder.is_dir()}
    return [folder for folder in folders if folder.is_dir() and unique.get(folder.resolve()) is folder]


def _file() -> Path:
    return cache_root() / "outputs.txt"


def _read() -> list[str]:
    try:
        return _file().read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError):
        return []
