"""Keep standard output for the result of a command, whatever plugins and libraries print."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import TextIO

_reserved: list[TextIO] = []


def result_stream() -> TextIO:
    """Return the stream for the result of a command: standard output, also while it is reserved."""
    return _reserved[-1] if _reserved else sys.stdout


@contextlib.contextmanager
def reserve_output() -> Iterator[None]:
    """Send what other code prints to standard error for the duration of the context."""
    _reserved.append(sys.stdout)
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        _reserved.pop()
