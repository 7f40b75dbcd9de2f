"""Write a file so that a reader never finds a part of it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def atomic_write(file: Path) -> Iterator[Path]:
    """Yield a path beside `file` to write to, and move it to `file` when the block ends.

    After an error, a crash, a power loss or with a full disk there is the old file, or none, and never a part of one.
    """
    draft = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        yield draft
        with open(draft, "rb") as written:
            os.fsync(written.fileno())  # or a power loss could leave an empty file under the new name
        draft.replace(file)
    finally:
        draft.unlink(missing_ok=True)
