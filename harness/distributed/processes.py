"""The processes that share a run: rank, barrier, broadcasts from the main process, and work that it shares."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from harness.utils import stop_signals

T = TypeVar("T")


SIGNAL_SECONDS = 0.2
"""How long a signal waits while the main process waits for the workers."""


@dataclass(frozen=True)
class _SharedWork:
    """What the main process broadcasts in place of a value, so that the workers perform a request.

    Attributes:
        request: The argument of `Processes.perform`.
    """

    request: Any


class Processes:
    """This process and the others that share the run.

    Attributes:
        rank: The rank of this process, from 0.
        world_size: The number of processes.
        abort_callbacks: Called with the reason in one line, last one first, before another process ends this one.
        ending: Set when this process is about to end by itself.
        abort_lock: Held while this process is ended because of another one.
        perform: In a worker: does a part of what the main process passes to `share`, and returns the result.
    """

    def __init__(self, rank: int = 0, world_size: int = 1, group: Any = None) -> None:
        self.rank, self.world_size, self._group = rank, world_size, group
        self.abort_callbacks: list[Callable[[str], None]] = []
        self.ending = threading.Event()
        self.abort_lock = threading.Lock()
        self.perform: Callable[[Any], Any] | None = None

    @property
    def is_main(self) -> bool:
        """Whether this is the process that writes files, scores and prints."""
        return self.rank == 0

    def broadcast(self, value: T) -> T:
        """Return the main process's value in every process; the others wait for it without a timeout.

        While they wait, they do what the main process passes to `share`.
        """
        if self.world_size == 1:
            return value
        while isinstance(received := self._broadcast(value), _SharedWork):
            assert self.perform is not None, "the main process shares work only while the workers have set `perform`"
            self._gather(self.perform(received.request))
        main_value: T = received
        return main_value

    def share(self, request: Any, own_part: Callable[[], None]) -> list[Any]:
        """Let every worker perform a request while this process does its own part.

        The main process of several calls this. A signal ends its wait for the workers.

        Args:
            request: The argument of `perform` in the workers.
            own_part: Called in this process.

        Returns:
            The results of the workers, by rank.
        """
        self._broadcast(_SharedWork(request))
        own_part()
        gathered = Future[list[Any]]()

        def gather() -> None:
            try:
                gathered.set_result(self._gather(None))
            except Exception as error:
                gathered.set_exception(error)

        # A collective in the main thread would hold signals back until the last worker has finished.
        threading.Thread(target=gather, name="harness-gather", daemon=True).start()
        while not wait([gathered], SIGNAL_SECONDS).done:
            stop_signals.raise_if_requested()
        return gathered.result()[1:]

    def _broadcast(self, value: Any) -> Any:
        from torch import distributed

        values = [value]
        distributed.broadcast_object_list(values, src=0, group=self._group)
        return values[0]

    def _gather(self, value: Any) -> list[Any]:
        """Return the values of all processes by rank in the main process; an empty list in the others."""
        from torch import distributed

        values: list[Any] = [None] * self.world_size if self.is_main else []
        distributed.gather_object(value, values if self.is_main else None, dst=0, group=self._group)
        return values

    def barrier(self) -> None:
        """Wait until every process has called this."""
        if self.world_size > 1:
            from torch import distributed

            distributed.barrier(group=self._group)

    @contextmanager
    def main_first(self) -> Iterator[None]:
        """Within the context, the main process runs before the others, which then find what it has cached."""
        if not self.is_main:
            self.broadcast(None)
        yield
        if self.is_main:
            self.broadcast(None)

    def mark_ending(self) -> None:
        """Mark that this process is about to end by itself. Does not return when another process is ending it."""
        with self.abort_lock:
            self.ending.set()

    @contextmanager
    def on_abort(self, callback: Callable[[str], None]) -> Iterator[None]:
        """Within the context, call `callback` before another process ends this one."""
        self.abort_callbacks.append(callback)
        try:
            yield
        finally:
            self.abort_callbacks.remove(callback)


SINGLE_PROCESS = Processes()
"""A run in one process."""
