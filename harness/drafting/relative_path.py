"""Paths as a drafted or imported spec writes them."""

from __future__ import annotations

import os
from pathlib import Path


def relative_path(path: str, folder: Path) -> str:
    """Return a path as a spec writes it: relative to its folder, or absolute if that is more than 3 folders up.

    Args:
        path: A path, relative to the working directory. An address (`https://…`) and `~` stay as they are.
        folder: The folder of the spec.
    """
    if not path or "://" in path or path.startswith("~"):
        return path
    relative = os.path.relpath(path, folder)
    return str(Path(path).resolve()) if relative.count("..") > 3 else relative
