"""Open files that the user names: regular files only, which have an end and never block.

A FIFO would wait for a writer, and `/dev/zero` has no end.
"""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import BinaryIO


def require_regular_file(path: str | Path) -> None:
    """Raise OSError unless the path is a regular file, or a link to one."""
    mode = os.stat(path).st_mode
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not stat.S_ISREG(mode):
        raise OSError(errno.EINVAL, "it is not a regular file (a pipe, a device or a socket)", str(path))


def open_regular_file(path: str | Path, buffering: int = -1) -> BinaryIO:
    """Open a regular file to read its bytes.

    Raises:
        OSError: It cannot be opened, or is not a regular file.
    """
    require_regular_file(path)
    file: BinaryIO = open(path, "rb", buffering=buffering)  # noqa: SIM115 - the caller closes it
    return file


def read_regular_file(path: str | Path, max_bytes: int) -> bytes:
    """Return the bytes of a regular file.

    Raises:
        OSError: It cannot be read, is not a regular file, or is larger than `max_bytes`.
    """
    with open_regular_file(path) as file:
        content = file.read(max_bytes + 1)
    if len(content) > max_bytes:
        raise OSError(errno.EFBIG, f"it is larger than {max_bytes / 1e6:.0f} MB", str(path))
    return content
