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

from harness.distributed.processes import Ranks
from harness.errors import HarnessError, RunError

GRACE = 5.0
"""Seconds in which the main process may find out by itself what another one has told it, before it is ended."""

FAREWELL = 60.0
"""Seconds in which processes that end together wait for each other."""

GLANCE = 0.25
"""Seconds between two looks for bad news."""


class News:
    """What the processes tell each other of their end, in the launcher's store.

    Keys: `failed`, what failed in a process beside the main one; `over`, set by the main one when it ends; `gone`, how
    many of the others have ended after it.
    """

    def __init__(self, store: Any, ranks: Ranks) -> None:
        self._store, self._ranks = store, ranks
        self._closed = threading.Event()
        self._listener = threading.Thread(target=self._listen, name="harness-ranks", daemon=True)

    def listen(self) -> None:
        """Look for bad news from here on, on a thread of its own."""
        self._listener.start()

    def close(self) -> None:
        """Look no more. A thread that looks while Python comes to its end would take the process down."""
        self._closed.set()
        self._listener.join(FAREWELL)

    def failed(self, error: BaseException) -> HarnessError | None:
        """This process ends with an error: the others end, too. The error that is to be said instead, if there is one.

        In the main process: one that another told before, if this one may come from it. Does not return in the others,
        unless the main process does not answer.
        """
        if self._ranks.main:
            told = None
            if not isinstance(error, HarnessError | KeyboardInterrupt):
                told = self._told(GRACE)  # a lost partner is no cause
            self._part()
            self.close()
            return told
        if self._heard("over") is None:
            self._store.set("failed", json.dumps(_described(error, self._ranks)))
        for _ in range(int(FAREWELL / GLANCE)):
            if self._heard("over") is not None:
                self._go()
            time.sleep(GLANCE)
        self.close()
        return None

    def _listen(self) -> None:
        awaited = "failed" if self._ranks.main else "over"
        while not self._closed.wait(GLANCE):
            found = self._heard(awaited)
            if found is None or self._closed.is_set():
                continue
            if not self._ranks.main:
                self._go()
            if self._ranks.ending.wait(GRACE):
                return  # what failed there failed here as well
            self._end(found)

    def _end(self, found: Mapping[str, Any]) -> None:
        """End the main process, which waits for one that will never come."""
        error = _error(found)
        with self._ranks.leave:
            if self._ranks.ending.is_set():
                return
            for callback in reversed(self._ranks.leaving):
                with contextlib.suppress(Exception):
                    callback(str(error))
            said = [found["traceback"], *(f"harness: {line}\n" for line in error.lines())]
            print("".join(said), end="", file=sys.stderr, flush=True)
            self._part()
            os._exit(error.exit_code)

    def _go(self) -> None:
        """End a process beside the main one."""
        with self._ranks.leave:
            for callback in reversed(self._ranks.leaving):
                with contextlib.suppress(Exception):
                    callback("the main process has ended")
            with contextlib.suppress(Exception):
                self._store.add("gone", 1)
            os._exit(0)

    def _part(self) -> None:
        """Tell the others that it is over, and wait until they have gone."""
        with contextlib.suppress(Exception):  # a launcher that died took the store along
            self._store.set("over", "{}")
            until = time.monotonic() + FAREWELL
            while self._store.add("gone", 0) < self._ranks.count - 1 and time.monotonic() < until:
                time.sleep(GLANCE)

    def _told(self, seconds: float) -> HarnessError | None:
        until = time.monotonic() + seconds
        while (found := self._heard("failed")) is None and time.monotonic() < until:
            time.sleep(GLANCE)
        return None if found is None else _error(found)

    def _heard(self, key: str) -> dict[str, Any] | None:
        """What stands under a key; None while there is nothing. Of a store that is gone: that it is over."""
        try:
            return json.loads(self._store.get(key)) if self._store.check([key]) else None
        except Exception:
            return {} if key == "over" else None


def _described(error: BaseException, ranks: Ranks) -> dict[str, Any]:
    where = f"process {ranks.number + 1} of {ranks.count}"
    if isinstance(error, HarnessError):
        facts = {"where": f"{where}: {error.where}", "what": error.what, "hint": error.hint, "code": error.exit_code}
        return {**facts, "traceback": ""}
    bug = "".join(traceback.format_exception(error))
    return {"where": where, "what": f"{type(error).__name__}: {error}", "hint": "", "code": 1, "traceback": bug}


def _error(told: Mapping[str, Any]) -> HarnessError:
    kind = HarnessError if told["code"] == HarnessError.exit_code else RunError
    return kind(told["where"], told["what"], told["hint"])
