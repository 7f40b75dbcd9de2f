"""Errors of files that cannot be written. Imports nothing heavy."""

from __future__ import annotations

from pathlib import Path

from harness.errors import HarnessError


def disk_write_error(
    path: Path, error: OSError, alternative: str = "set HARNESS_CACHE to another folder"
) -> HarnessError:
    """Return the error for a file or folder of the harness that cannot be written.

    Args:
        path: The file or folder.
        error: Why it cannot be written.
        alternative: How to choose another folder, in the imperative.
    """
    what = f"cannot write the rows here: {error.strerror or error}"
    return HarnessError(str(path), what, f"free disk space, make the folder writable, or {alternative}")
