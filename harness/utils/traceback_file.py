"""Write the traceback of an error to a file, for a report to those who can fix it."""

from __future__ import annotations

import os
import time
import traceback
from pathlib import Path

from harness.utils.cache_dir import cache_root
from harness.utils.redaction import redact_text

MAX_FILES = 20
"""Traceback files that are kept."""


def write_traceback(error: BaseException) -> Path | None:
    """Write the traceback of an error, with its causes, below the cache folder.

    Returns:
        The file; None if it cannot be written.
    """
    folder = cache_root() / "tracebacks"
    file = folder / f"{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}.txt"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        text = redact_text("".join(traceback.format_exception(error)))
        file.write_text(text, encoding="utf-8", errors="backslashreplace")
        for old in sorted(folder.glob("*.txt"))[:-MAX_FILES]:
            old.unlink(missing_ok=True)
    except OSError:
        return None
    return file
