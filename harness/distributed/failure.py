"""Bad news between processes, on a road of its own: one that hangs in a collective, whose partner will never come,
hears nothing else.

Knows the launcher's store. A thread of each process looks into it.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import threading
import time
import traceback
from collections.abc import Mapping
from typing import Any

from harness.distributed.processes import Processes
from harness.errors import HarnessError, RunError

ERROR_GRACE = 5.0
"""Seconds in which the main process may find out by itself what another one has told it, before it is ended."""

SHUTDOWN_TIMEOUT = 60.0
"""Seconds in which processes that end together wait for each other."""

POLL_INTERVAL = 0.25
"""Seconds between two looks for bad news."""


class FailureWatcher:
    """What the processes tell each other of their end, in the launcher's store.

    Keys: `failed`, what failed in a process beside the main one; `over`, set by the main one when it ends; `gone`, how
    many of the others have ended after it.
    """

    def __init__(self, store: Any, processes: Processes) -> None:
        self._store, self._processes = store, processes
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="harness-ranks", daemon=True)

    def start(self) -> None:
        """Look for bad news from here on, on a thread of its own."""
        self._thread.start()

    def stop(self) -> None:
        """Look no more. A thread that looks while Python comes to its end would take the process down."""
        self._closed.set()
        self._thread.join(SHUTDOWN_TIMEOUT)

    def handle_failure(self, error: BaseException) -> HarnessError | None:
        """This process ends with an error: the others end, too. The error that is to be said instead, if there is one.

        In the main process: one that another told before, if this one may come from it. Does not return in the others,
        unless the main process does not answer.
        """
        if self._processes.is_main:
            told = None
            if not isinstance(error, HarnessError | KeyboardInterrupt):
                told = self._wait_for_failure(ERROR_GRACE)  # a lost partner is no cause
            self._wait_for_workers_to_exit()
            self.stop()
            return told
        if self._read_key("over") is None:
            self._store.set("failed", json.dumps(_serialize_error(error, self._processes)))
        for _ in range(int(SHUTDOWN_TIMEOUT / POLL_INTERVAL)):
            if self._read_key("over") is not None:
                self._exit_worker_process()
            time.sleep(POLL_INTERVAL)
        self.stop()
        return None

    def _watch(self) -> None:
        awaited = "failed" if self._processes.is_main else "over"
        while not self._closed.wait(POLL_INTERVAL):
            found = self._read_key(awaited)
            if found is None or self._closed.is_set():
                continue
            if not self._processes.is_main:
                self._exit_worker_process()
            if self._processes.ending.wait(ERROR_GRACE):
                return  # what failed there failed here as well
            self._abort_main_process(found)

    def _abort_main_process(self, failure: Mapping[str, Any]) -> None:
        """End the main process, which waits for one that will never come."""
        error = _deserialize_error(failure)
        with self._processes.abort_lock:
            if self._processes.ending.is_set():
                return
            for callback in reversed(self._processes.abort_callbacks):
                with contextlib.suppress(Exception):
                    callback(str(error))
            said = [failure["traceback"], *(f"harness: {line}\n" for line in error.lines())]
            print("".join(said), end="", file=sys.stderr, flush=True)
            self._wait_for_workers_to_exit()
            os._exit(error.exit_code)

    def _exit_worker_process(self) -> None:
        """End a process beside the main one."""
        with self._processes.abort_lock:
            for callback in reversed(self._processes.abort_callbacks):
                with contextlib.suppress(Exception):
                    callback("the main process has ended")
            with contextlib.suppress(Exception):
                self._store.add("gone", 1)
            os._exit(0)

    def _wait_for_workers_to_exit(self) -> None:
        """Tell the others that it is over, and wait until they have gone."""
        with contextlib.suppress(Exception):  # a launcher that died took the store along
            self._store.set("over", "{}")
            until = time.monotonic() + SHUTDOWN_TIMEOUT
            while self._store.add("gone", 0) < self._processes.world_size - 1 and time.monotonic() < until:
                time.sleep(POLL_INTERVAL)

    def _wait_for_failure(self, seconds: float) -> HarnessError | None:
        until = time.monotonic() + seconds
        while (found := self._read_key("failed")) is None and time.monotonic() < until:
            time.sleep(POLL_INTERVAL)
        return None if found is None else _deserialize_error(found)

    def _read_key(self, key: str) -> dict[str, Any] | None:
        """What stands under a key; None while there is nothing. Of a store that is gone: that it is over."""
        try:
            return json.loads(self._store.get(key)) if self._store.check([key]) else None
        except Exception:
            return {} if key == "over" else None


def _serialize_error(error: BaseException, processes: Processes) -> dict[str, Any]:
    where = f"process {processes.rank + 1} of {processes.world_size}"
    if isinstance(error, HarnessError):
        facts = {"where": f"{where}: {error.where}", "what": error.what, "hint": error.hint, "code": error.exit_code}
        return {**facts, "traceback": ""}
    bug = "".join(traceback.format_exception(error))
    return {"where": where, "what": f"{type(error).__name__}: {error}", "hint": "", "code": 1, "traceback": bug}


def _deserialize_error(failure: Mapping[str, Any]) -> HarnessError:
    kind = HarnessError if failure["code"] == HarnessError.exit_code else RunError
    return kind(failure["where"], failure["what"], failure["hint"])
