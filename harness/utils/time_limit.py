"""Stop code of a plugin or a template that computes for too long in this process.

A watchdog thread raises an exception in the thread that computes. It reaches Python code only, not a call into C.
"""

from __future__ import annotations

import ctypes
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

POLL_SECONDS = 0.2
"""Seconds between two looks of the watchdog."""


class _TimeLimitReached(BaseException):
    """Raised in the thread that computes; not an Exception, so that the code does not handle it."""


@dataclass
class _Call:
    clock: int
    deadline: float
    is_over: bool = False


_calls: dict[int, _Call] = {}
_lock = threading.Lock()
_has_calls = threading.Event()
_watchdog_pid = 0


@contextmanager
def cpu_time_limit(seconds: float, build_error: Callable[[], Exception]) -> Iterator[None]:
    """Within the context, limit the CPU time of this thread. A busy machine does not count, and neither does waiting.

    Without effect on systems that do not measure the CPU time of single threads.

    Args:
        seconds: CPU time.
        build_error: Returns the exception to raise when it is used up.
    """
    if not hasattr(time, "pthread_getcpuclockid"):
        yield
        return
    thread = threading.get_ident()
    call = _Call(time.pthread_getcpuclockid(thread), time.thread_time() + seconds)
    with _lock:
        outer = _calls.get(thread)
        _calls[thread] = call
        _start_watchdog()
    _has_calls.set()
    try:
        yield
    except _TimeLimitReached:
        raise build_error() from None
    finally:
        with _lock:
            _calls.pop(thread)
            if outer is not None:
                _calls[thread] = outer
            if call.is_over:  # it may be on its way still
                ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), None)


def _start_watchdog() -> None:
    global _watchdog_pid
    if _watchdog_pid != os.getpid():  # a process that was forked has no threads
        _watchdog_pid = os.getpid()
        threading.Thread(target=_watch, name="harness-time-limit", daemon=True).start()


def _watch() -> None:
    while True:
        _has_calls.wait()
        time.sleep(POLL_SECONDS)
        with _lock:
            if not _calls:
                _has_calls.clear()
            for thread, call in _calls.items():
                if not call.is_over and time.clock_gettime(call.clock) > call.deadline:
                    call.is_over = True
                    ctypes.pythonapi.PyThreadState_SetAsyncExc(
                        ctypes.c_ulong(thread), ctypes.py_object(_TimeLimitReached)
                    )
