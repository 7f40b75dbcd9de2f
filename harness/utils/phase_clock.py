"""Measure how long each phase of a run takes."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

PHASES = ("prepare", "load", "generate", "evaluate", "train", "write")
"""The phases of a run, in order.

Read, tokenize and check rows; load the model and probe its batches; let it write rows; evaluate; train; write
files and emit events.
"""


class PhaseClock:
    """A clock that is in one phase at a time. A phase within another one interrupts it.

    An evaluation in the middle of training counts as evaluation only, so the phases add up to the time that passed.
    """

    def __init__(self) -> None:
        """Start with no time in any phase."""
        self._seconds: dict[str, float] = {}
        self._running: list[str] = []
        self._since = time.monotonic()

    def add(self, phase: str, seconds: float) -> None:
        """Add time that was measured elsewhere."""
        self._seconds[phase] = self._seconds.get(phase, 0.0) + seconds

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Count the time within the context as a phase."""
        self._count()
        self._running.append(name)
        try:
            yield
        finally:
            self._count()
            self._running.pop()

    def seconds(self) -> dict[str, float]:
        """Return phase -> seconds so far, in the order of `PHASES`."""
        self._count()
        return {phase: self._seconds[phase] for phase in PHASES if phase in self._seconds}

    def _count(self) -> None:
        """Give the time since the last call to the running phase."""
        now = time.monotonic()
        if self._running:
            self.add(self._running[-1], now - self._since)
        self._since = now


def phases_of_run_info(run_info: Mapping[str, object]) -> dict[str, float]:
    """Return phase -> seconds of a report's `run`; empty for a report without them."""
    phases = run_info.get("phases")
    if not isinstance(phases, Mapping):
        return {}
    return {str(name): seconds for name, seconds in phases.items() if isinstance(seconds, int | float)}
