"""The file with the error of a run, an evaluation or an experiment that failed."""

from __future__ import annotations

import contextlib
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from harness.utils.find_run import ERROR_FILE
from harness.utils.redaction import redact_text


@contextmanager
def error_file(folder: Path) -> Iterator[None]:
    """Write an error that leaves the context to `error.txt` in the folder, and delete the file of an earlier attempt.

    Its first line is the error, then comes the traceback. An interruption is not an error.
    """
    file = folder / ERROR_FILE
    with contextlib.suppress(OSError):
        file.unlink(missing_ok=True)
    try:
        yield
    except (KeyboardInterrupt, GeneratorExit):
        raise
    except BaseException as error:
        write_error(folder, error)
        raise


def write_error(folder: Path, error: BaseException) -> None:
    """Write `error.txt`. The error of a worker process has the traceback of the worker as its note."""
    text = f"{type(error).__name__}: {error}"
    text = f"{' '.join(text.split())}\n\n{''.join(traceback.format_exception(error))}"
    with contextlib.suppress(OSError):  # the disk may be what failed
        (folder / ERROR_FILE).write_text(redact_text(text), encoding="utf-8")
