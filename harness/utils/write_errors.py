"""Turn a failure to write into one line with the remedy, whichever library raises it."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator
from pathlib import Path

from harness.errors import HarnessError, RunError
from harness.utils.shell_commands import enclosing_run, resume_command

_DISK_FULL_ERRNOS = (errno.ENOSPC, errno.EDQUOT)
_DISK_FULL_TEXTS = (
    "No space left on device",  # SafetensorError and the tokenizer's Exception
    "Disk quota exceeded",
    "PytorchStreamWriter failed",  # torch.save: RuntimeError
    "unexpected pos",  # torch.save: RuntimeError, when it closes its file
    "iostream error",  # torch.save: RuntimeError, when C++ flushes its file (libstdc++)
    "iostream_category error",  # the same with libc++
)


def is_disk_full_error(error: BaseException) -> bool:
    """Return whether the error reports that the disk, or the user's quota on it, is full."""
    if isinstance(error, OSError):
        return error.errno in _DISK_FULL_ERRNOS
    return any(text in str(error) for text in _DISK_FULL_TEXTS)


@contextlib.contextmanager
def report_write_errors(path: Path, what: str, remedy: str | None = None) -> Iterator[None]:
    """Report a failure to write within the context as one line.

    Args:
        path: What is written.
        what: What it is, e.g. "the checkpoint".
        remedy: The command to type when there is space again. None: the one that resumes the run which `path` is in.

    Raises:
        RunError: It cannot be written.
    """
    try:
        yield
    except HarnessError:
        raise
    except Exception as error:
        run = enclosing_run(path)
        remedy = remedy or ("try again" if run is None else resume_command(run))
        if is_disk_full_error(error):
            what = f"no disk space is left to write {what}"
            raise RunError(str(path), what, f"free some, then: {remedy}") from error
        if isinstance(error, OSError):
            what = f"{what} cannot be written: {error.strerror or error}"
            raise RunError(str(path), what, f"fix the permissions, then: {remedy}") from error
        raise
