"""One process among those that share a run, and how it comes by what the main one knows."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

T = TypeVar("T")


class Processes:
    """This process among those that share the run. rank: its own, from 0. world_size: how many there are.

    abort_callbacks: what this process does before it is ended from without, the last one first, as when it ends by
    itself; each is called with the reason in one line.
    """

    def __init__(self, rank: int = 0, world_size: int = 1, group: Any = None) -> None:
        self.rank, self.world_size, self._group = rank, world_size, group
        self.abort_callbacks: list[Callable[[str], None]] = []
        self.ending = threading.Event()
        """Set when this process is about to end by itself."""
        self.abort_lock = threading.Lock()
        """Held by whoever ends this process from without."""

    @property
    def is_main(self) -> bool:
        """Whether this is the one that writes, measures and speaks."""
        return self.rank == 0

    def broadcast(self, value: T) -> T:
        """The value that the main process gives, in every process; the others wait for it as long as it takes."""
        if self.world_size == 1:
            return value
        from torch import distributed

        held = [value]
        distributed.broadcast_object_list(held, src=0, group=self._group)
        return held[0]

    def barrier(self) -> None:
        """Wait until every process has come here."""
        if self.world_size > 1:
            from torch import distributed

            distributed.barrier(group=self._group)

    @contextmanager
    def main_first(self) -> Iterator[None]:
        """Within it the main process goes before the others, which find in caches what it put there."""
        if not self.is_main:
            self.broadcast(None)
        yield
        if self.is_main:
            self.broadcast(None)

    def mark_ending(self) -> None:
        """This process is about to end by itself. Does not return where it is being ended from without."""
        with self.abort_lock:
            self.ending.set()

    @contextmanager
    def on_abort(self, callback: Callable[[str], None]) -> Iterator[None]:
        """Within it, `callback` is called before this process is ended from without."""
        self.abort_callbacks.append(callback)
        try:
            yield
        finally:
            self.abort_callbacks.remove(callback)


SINGLE_PROCESS = Processes()
"""A run in one process, which shares nothing."""
