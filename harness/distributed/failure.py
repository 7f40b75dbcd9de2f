"""Report failures between the processes of a run through the launcher's store.

A process that waits in a collective for a failed partner gets no other message. So a thread of each process polls the
store, and ends its process when another one has failed or the main process has ended.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import sys
import threading
import time
import traceback
from collections.abc import Mapping
from typing import Any

from harness.distributed.processes import Processes
from harness.errors import HarnessError, RunError
from harness.utils import stop_signals
from harness.utils.stop_signals import Interrupted

ERROR_GRACE = 5.0
"""Seconds the main process gets to fail by itself after a worker has failed, before it is ended."""

SHUTDOWN_TIMEOUT = 60.0
"""Seconds for which processes that end together wait for each other."""

POLL_INTERVAL = 0.25
"""Seconds between two readings of the store."""

LOST_CONNECTION = re.compile(r"closed by peer|reset by peer|broken pipe|remote process exited|timed out", re.IGNORECASE)
"""What gloo and NCCL report when a partner has ended."""


class FailureWatcher:
    """Coordinates the end of all processes of a run through the launcher's store.

    Keys of the store:

    - `failed`: the error of a worker process;
    - `signal`: the name of a signal that a worker process received;
    - `over`: set by the main process when it ends;
    - `gone`: the number of worker processes that have ended after it.
    """

    def __init__(self, store: Any, processes: Processes) -> None:
        self._store, self._processes = store, processes
        self._closed = threading.Event()
        self._signal_is_passed_on = False
        self._own_error: BaseException | None = None
        if processes.is_main:
            processes.find_worker_error = self._find_worker_error
        self._thread = threading.Thread(target=self._watch, name="harness-ranks", daemon=True)

    def start(self) -> None:
        """Start to poll the store, in a thread."""
        self._thread.start()

    def stop(self) -> None:
        """Stop polling. A thread that polls while the interpreter shuts down would crash the process."""
        self._closed.set()
        self._thread.join(SHUTDOWN_TIMEOUT)

    def handle_failure(self, error: BaseException) -> None:
        """End the other processes, because this one ends with an error.

        Does not return in a worker process, unless the main process does not answer.
        """
        if self._processes.is_main:
            self._wait_for_workers_to_exit()
            self.stop()
            return
        if self._read_key("over") is None and not isinstance(error, Interrupted):  # which the main process raises too
            self._store.set("failed", json.dumps(_serialize_error(error, self._processes)))
        for _ in range(int(SHUTDOWN_TIMEOUT / POLL_INTERVAL)):
            if self._read_key("over") is not None:
                self._exit_worker_process()
            time.sleep(POLL_INTERVAL)
        self.stop()

    def _find_worker_error(self, error: BaseException) -> HarnessError | None:
        """Return the error of a worker if `error`, of the main process, may be its consequence."""
        if isinstance(error, HarnessError | KeyboardInterrupt | GeneratorExit) or error is self._own_error:
            return None
        worker_error = self._wait_for_failure(ERROR_GRACE)
        if worker_error is None and isinstance(error, RuntimeError) and LOST_CONNECTION.search(str(error)):
            what = f"a worker process ended without an error, or its node cannot be reached: {error}"
            hint = "look for its end in the output of the launcher and the system, e.g. for lack of memory; then resume"
            worker_error = RunError(f"main {self._processes}", what, hint)
        self._own_error = error if worker_error is None else None
        return worker_error

    def _watch(self) -> None:
        key = "failed" if self._processes.is_main else "over"
        while not self._closed.wait(POLL_INTERVAL):
            self._pass_signal_on()
            value = self._read_key(key)
            if value is None or self._closed.is_set():
                continue
            if not self._processes.is_main:
                self._exit_worker_process()
            if self._processes.ending.wait(ERROR_GRACE):
                return  # the failure of the worker has reached the main process too
            self._abort_main_process(value)

    def _pass_signal_on(self) -> None:
        """Let the main process receive a signal that only a worker received, e.g. because its node is shut down."""
        if self._signal_is_passed_on or self._processes.ending.is_set():
            return
        requested = stop_signals.requested_signal()
        if not self._processes.is_main:
            if requested is not None:
                self._signal_is_passed_on = True
                with contextlib.suppress(Exception):
                    self._store.set("signal", json.dumps({"name": requested}))
        elif requested is not None:
            self._signal_is_passed_on = True  # the main process has received it itself
        elif (received := self._read_key("signal")) is not None:
            self._signal_is_passed_on = True
            os.kill(os.getpid(), getattr(signal, received["name"]))

    def _abort_main_process(self, failure: Mapping[str, Any]) -> None:
        """End the main process, which waits for a process that has failed."""
        error = _deserialize_error(failure)
        with self._processes.abort_lock:
            if self._processes.ending.is_set():
                return
            for callback in reversed(self._processes.abort_callbacks):
                with contextlib.suppress(Exception):
                    callback(error)
            messages = [
                failure["traceback"] if failure["is_bug"] else "",
                *(f"harness: {line}\n" for line in error.lines()),
            ]
            print("".join(messages), end="", file=sys.stderr, flush=True)
            self._wait_for_workers_to_exit()
            os._exit(error.exit_code)

    def _exit_worker_process(self) -> None:
        with self._processes.abort_lock:
            with contextlib.suppress(Exception):
                self._store.add("gone", 1)
            os._exit(0)

    def _wait_for_workers_to_exit(self) -> None:
        """Signal the end to the worker processes, and wait until they have exited."""
        with contextlib.suppress(Exception):  # the store is gone when the launcher has died
            self._store.set("over", "{}")
            deadline = time.monotonic() + SHUTDOWN_TIMEOUT
            while self._store.add("gone", 0) < self._processes.world_size - 1 and time.monotonic() < deadline:
                time.sleep(POLL_INTERVAL)

    def _wait_for_failure(self, seconds: float) -> HarnessError | None:
        deadline = time.monotonic() + seconds
        while (failure := self._read_key("failed")) is None and time.monotonic() < deadline:
            time.sleep(POLL_INTERVAL)
        return None if failure is None else _deserialize_error(failure)

    def _read_key(self, key: str) -> dict[str, Any] | None:
        """Return the value of a key; None while it has none. A store that is gone counts as `over`."""
        try:
            return json.loads(self._store.get(key)) if self._store.check([key]) else None
        except Exception:
            return {} if key == "over" else None


def _serialize_error(error: BaseException, processes: Processes) -> dict[str, Any]:
    text = "".join(traceback.format_exception(error))
    if isinstance(error, HarnessError):
        where, what, hint, code = f"{processes}: {error.where}", error.what, error.hint, error.exit_code
    else:
        where, what, hint, code = str(processes), f"{type(error).__name__}: {error}", "", RunError.exit_code
    is_bug = not isinstance(error, HarnessError)
    return {"where": where, "what": what, "hint": hint, "code": code, "traceback": text, "is_bug": is_bug}


def _deserialize_error(failure: Mapping[str, Any]) -> HarnessError:
    """Return the error of a worker. Its note is the traceback there."""
    error_class = HarnessError if failure["code"] == HarnessError.exit_code else RunError
    error = error_class(failure["where"], failure["what"], failure["hint"])
    error.add_note(f"in the worker:\n{failure['traceback']}")
    return error
