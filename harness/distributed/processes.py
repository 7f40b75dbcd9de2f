"""The processes that share a run: rank, barrier, broadcasts from the main process, and work that it shares."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from harness.errors import HarnessError
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
        world_size: The number of processes, on all nodes.
        host: The name of this process's machine; "" if all processes are on one.
        nodes: The ranks of each node. That of the main process is the first one.
        group: The group in which processes wait for each other without a timeout.
        node_group: The group of this process's node; None on the node of the main process.
        abort_callbacks: Called with a worker's error, last one first, before that error ends the main process.
        find_worker_error: Returns the error of a worker whose consequence another error is; None: of none.
        ending: Set when this process is about to end by itself.
        abort_lock: Held while this process is ended because of another one.
        perform: In a worker: does a part of what the main process passes to `share`, and returns the result.
    """

    def __init__(self, rank: int = 0, world_size: int = 1, *, host: str = "") -> None:
        self.rank, self.world_size, self.host = rank, world_size, host
        self.nodes: list[list[int]] = [list(range(world_size))]
        self.group: Any = None
        self.node_group: Any = None
        self.abort_callbacks: list[Callable[[HarnessError], None]] = []
        self.find_worker_error: Callable[[BaseException], HarnessError | None] = lambda _: None
        self.ending = threading.Event()
        self.abort_lock = threading.Lock()
        self.perform: Callable[[Any], Any] | None = None

    def __str__(self) -> str:
        """Name this process in an error message."""
        return f"process {self.rank + 1} of {self.world_size}{f' on {self.host}' if self.host else ''}"

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
            self.gather(self.perform(received.request))
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
                gathered.set_result(self.gather(None))
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
        distributed.broadcast_object_list(values, src=0, group=self.group)
        return values[0]

    def gather(self, value: Any) -> list[Any]:
        """Return the values of all processes by rank in the main process; an empty list in the others."""
        from torch import distributed

        values: list[Any] = [None] * self.world_size if self.is_main else []
        distributed.gather_object(value, values if self.is_main else None, dst=0, group=self.group)
        return values

    def barrier(self) -> None:
        """Wait until every process has called this."""
        if self.world_size > 1:
            from torch import distributed

            distributed.barrier(group=self.group)

    @contextmanager
    def main_first(self) -> Iterator[None]:
        """Within the context, the main process runs before the others, which then find what it has cached.

        A cache may belong to a node. So on each other node the first process runs before its neighbors.
        """
        if not self.is_main:
            self.broadcast(None)
        with self.node_first():
            yield
        if self.is_main:
            self.broadcast(None)

    @contextmanager
    def node_first(self) -> Iterator[None]:
        """Within the context, one process of each node runs before its neighbors.

        On the node of the main process nobody waits: the main process has filled the cache before.
        """
        is_first = any(ranks[0] == self.rank for ranks in self.nodes)
        if not is_first:
            self._node_barrier()
        yield
        if is_first:
            self._node_barrier()

    def _node_barrier(self) -> None:
        if self.node_group is not None:
            from torch import distributed

            distributed.barrier(group=self.node_group)

    @contextmanager
    def explained_errors(self) -> Iterator[None]:
        """Within the context, the consequence of a worker's error, such as a lost connection, becomes that error."""
        try:
            yield
        except BaseException as error:
            worker_error = self.find_worker_error(error)
            if worker_error is None:
                raise
            raise worker_error from error

    def mark_ending(self) -> None:
        """Mark that this process is about to end by itself. Does not return when another process is ending it."""
        with self.abort_lock:
            self.ending.set()

    @contextmanager
    def on_abort(self, callback: Callable[[HarnessError], None]) -> Iterator[None]:
        """Within the context, call `callback` with the error of a worker before it ends this process."""
        self.abort_callbacks.append(callback)
        try:
            yield
        finally:
            self.abort_callbacks.remove(callback)


SINGLE_PROCESS = Processes()
"""A run in one process."""
