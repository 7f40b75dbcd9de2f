"""Deliver events to a plugin's listener without letting it affect the run.

Each listener of a plugin runs in its own thread and receives read-only copies, in order. It cannot change a result, end
the run, or delay it for longer than `TIME_LIMIT`.
"""

from __future__ import annotations

import dataclasses
import queue
import threading
import time
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from harness.errors import ComponentError
from harness.events import ArmsFinished, Event, InterruptedRunCompleted, RunFailed, RunFinished
from harness.interfaces.guard import describe_exception
from harness.utils import copying

TIME_LIMIT = 10.0
"""Seconds that a listener may take for one event, and for those that are left when the run ends."""

MAX_PENDING = 10_000
"""Events that may wait for a listener."""

_LAST_EVENTS = (ArmsFinished, InterruptedRunCompleted, RunFailed, RunFinished)
"""Events after which the process may end: the listener gets the time to receive them."""


class PluginListener:
    """Calls one function for each event, in a thread of its own.

    Attributes:
        name: Distribution and module of the plugin.
        failure: Why the listener gets no more events; None while it does.
    """

    def __init__(
        self,
        name: str,
        function: Callable[[Event], Any],
        time_limit: float = TIME_LIMIT,
        prepare: Callable[[Event], Event] | None = None,
    ) -> None:
        """Start listening with the first event.

        Args:
            name: Distribution and module of the plugin.
            function: Called with each event.
            time_limit: Seconds that it may take for one event.
            prepare: Returns the read-only copy of an event; None: `read_only`. It is called in the thread of the
                sender, and its time does not count.
        """
        self.name = name
        self.failure: str | None = None
        self._function, self._time_limit, self._prepare = function, time_limit, prepare or read_only
        self._events: queue.Queue[Event] = queue.Queue(MAX_PENDING)
        self._busy_since: float | None = None
        self._thread: threading.Thread | None = None

    def send(self, event: Event) -> None:
        """Hand over a read-only copy of an event. It returns at once, except at the end of a run.

        At the end of a run it waits until the listener has received everything, at most for the time limit.
        """
        if self.failure is None:
            self._check_time()
        if self.failure is not None:
            return
        if self._thread is None:
            self._thread = threading.Thread(target=self._listen, name=f"listener {self.name}", daemon=True)
            self._thread.start()
        try:
            self._events.put_nowait(self._prepare(event))
        except queue.Full:
            self.failure = f"{MAX_PENDING:,} events wait for it"
        except Exception as error:
            self.failure = f"the event cannot be prepared: {describe_exception(error)}"
        if isinstance(event, _LAST_EVENTS):
            self._wait()

    def _listen(self) -> None:
        while self.failure is None:
            event = self._events.get()
            self._busy_since = time.monotonic()
            try:
                self._function(event)
            except BaseException as error:  # SystemExit and KeyboardInterrupt end only this thread
                self.failure = error.what if isinstance(error, ComponentError) else describe_exception(error)
            self._busy_since = None
            self._events.task_done()

    def _check_time(self) -> None:
        busy_since = self._busy_since
        if busy_since is not None and time.monotonic() - busy_since > self._time_limit:
            self.failure = f"one event takes longer than {self._time_limit:g} s"

    def _wait(self) -> None:
        deadline = time.monotonic() + self._time_limit
        while self.failure is None and self._events.unfinished_tasks:
            if time.monotonic() > deadline:
                self.failure = f"its events take longer than {self._time_limit:g} s at the end of the run"
            time.sleep(0.002)


def read_only(value: Any) -> Any:
    """Return a copy in which dicts are read-only mappings, and lists and sets are tuples and frozensets.

    Dataclasses are copied with their fields. Objects of other classes are returned as they are.
    """
    if isinstance(value, Mapping):
        return MappingProxyType({key: read_only(element) for key, element in value.items()})
    if isinstance(value, list) or type(value) is tuple:
        return tuple(map(read_only, value))
    if isinstance(value, set):
        return frozenset(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
        return copying.with_attributes(value, {name: read_only(element) for name, element in fields.items()})
    return value
