"""Stop a command on SIGINT (Ctrl-C), SIGTERM or SIGUSR1, as Slurm and Kubernetes send them, without losing work.

The handler sets a flag. Within `deferred` (a training stage) it does no more: the loop looks at the flag after each
step, saves a checkpoint and raises `Interrupted`. Elsewhere the handler also raises. An exception that Python raises
within a destructor or the garbage collector is lost, so long phases look at the flag again: see `raise_if_requested`.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

EXIT_CODES = {"SIGINT": 130, "SIGTERM": 75, "SIGUSR1": 75}
"""Signal -> exit code of the command. 75 is EX_TEMPFAIL of sysexits.h: try again."""

DEFERRED_NOTE = b"\nharness: stopping after this step, with a checkpoint; Ctrl-C again stops at once\n"


class Interrupted(KeyboardInterrupt):
    """A command was interrupted by a signal. Its notes say how to resume it.

    Attributes:
        signal_name: `SIGINT`, `SIGTERM` or `SIGUSR1`.
    """

    def __init__(self, signal_name: str) -> None:
        super().__init__(f"interrupted by {signal_name}")
        self.signal_name = signal_name

    @property
    def exit_code(self) -> int:
        """The exit code of the command."""
        return EXIT_CODES[self.signal_name]


class _State:
    """The signal that was received, and how many `deferred` contexts are active. Signals are global to a process."""

    requested: str | None = None
    deferrals = 0


@contextmanager
def handle_stop_signals(*, always_defer: bool = False) -> Iterator[None]:
    """Within the context, handle the signals of `EXIT_CODES`. Only the main thread of a process can do so.

    Args:
        always_defer: Whether the handler only sets the flag, also outside `deferred`.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def handle(number: int, frame: FrameType | None) -> None:
        name = signal.Signals(number).name
        repeated, _State.requested = _State.requested is not None, name
        if always_defer:
            return
        if _State.deferrals and not (repeated and name == "SIGINT"):
            if name == "SIGINT":
                os.write(2, DEFERRED_NOTE)  # print is not safe in a signal handler
            return
        raise Interrupted(name)

    numbers = [getattr(signal, name) for name in EXIT_CODES if hasattr(signal, name)]  # Windows has no SIGUSR1
    previous = {number: signal.signal(number, handle) for number in numbers}
    try:
        yield
    finally:
        _State.requested, _State.deferrals = None, 0
        for number, handler in previous.items():
            signal.signal(number, handler)


@contextmanager
def deferred() -> Iterator[None]:
    """Within the context, a signal only sets the flag; a second Ctrl-C still raises."""
    _State.deferrals += 1
    try:
        yield
    finally:
        _State.deferrals -= 1


def is_requested() -> bool:
    """Return whether a signal was received."""
    return _State.requested is not None


def requested_signal() -> str | None:
    """Return the name of the signal that was received; None if none was."""
    return _State.requested


def raise_if_requested() -> None:
    """Raise `Interrupted` if a signal was received, unless signals are deferred."""
    if _State.requested is not None and not _State.deferrals:
        raise Interrupted(_State.requested)


def clear() -> None:
    """Forget the signal: the interruption is being handled."""
    _State.requested = None
