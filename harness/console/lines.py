"""Phases as plain lines for a log: a few on the way, and its end; never hundreds."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from rich.text import Text

from harness.legible import amount, duration, one_line

QUARTERS = 4
SOON, FIRST, SILENCE = 10.0, 30.0, 600.0
"""Seconds: what ends before is told of once; the first line of a slow phase; the longest that a log is silent."""


@dataclass
class _Phase:
    started: float
    said: float
    done: int = 0
    total: int = 0
    note: str = ""
    unit: str = ""


class Lines:
    """Prints lines of phases.

    A phase of less than 10 s is one line, at its end. Before that there is one at each quarter, but none within 10 s of
    the one before; and one after 30 s, later after a fifth of the time gone by, but at least every 10 minutes, until
    these too become too many: a phase of an hour has about twenty-five, one of four days a hundred and thirty. One that
    counts nothing is told of when it begins, and at its end only if it took longer.

    brief: as long as it is set, phases of less than 10 s are not told of at all.
    """

    def __init__(self, say: Callable[[Text], None], clock: Callable[[], float] = time.monotonic) -> None:
        self._say = say
        self._clock = clock
        self.brief = False
        self._phases: dict[str, _Phase] = {}
        self._ended: dict[str, int] = {}

    def update(self, stage: int, phase: str, done: int, total: int, note: str, unit: str) -> None:
        """A phase has come to `done` of `total` (0: unknown)."""
        if self._ended.get(phase) == total and done >= total > 0:
            return
        now = self._clock()
        known = self._phases.get(phase)
        if known is None:
            self._end_unbounded()
            known = self._phases[phase] = _Phase(now, now)
            self._ended.pop(phase, None)
            if not (total or done or self.brief):
                self._line(phase, one_line(note) or "begins")
        quarter = _quarter(known.done, total)
        known.done, known.total, known.note, known.unit = done, total, note, unit
        if done >= total > 0:
            self._finish(phase)
            return
        since, elapsed = now - known.said, now - known.started
        # Systems that run jobs take ten silent minutes for a job that hangs.
        due = since >= min(max(FIRST, elapsed / 5), max(SILENCE, elapsed / 25))
        if due or (_quarter(done, total) > quarter and since >= SOON):
            known.said = now
            self._line(phase, _state(known, elapsed))

    def end(self) -> None:
        """Every phase that still goes on is over."""
        for phase in list(self._phases):
            self._finish(phase)
        self._ended.clear()

    def break_off(self) -> None:
        """Every phase that still goes on has been broken off."""
        for phase, known in self._phases.items():
            self._line(phase, f"broken off after {duration(self._clock() - known.started)}")
        self._phases.clear()

    def _end_unbounded(self) -> None:
        # Who does not know how long it takes does not say that it is over: the next phase says it.
        for phase in [phase for phase, known in self._phases.items() if not known.total]:
            self._finish(phase)

    def _finish(self, phase: str) -> None:
        known = self._phases.pop(phase)
        self._ended[phase] = known.total
        took = self._clock() - known.started
        if took < SOON and (self.brief or not (known.total or known.done)):
            return
        count = f"{amount(known.done, known.unit)} " if known.done else ""
        note = f", {one_line(known.note)}" if known.note else ""
        self._line(phase, f"{count}in {duration(took)}{note}")

    def _line(self, phase: str, text: str) -> None:
        self._say(Text(f"{one_line(phase)}: {text}"))


def _quarter(done: int, total: int) -> int:
    return done * QUARTERS // total if total else 0


def _state(phase: _Phase, elapsed: float) -> str:
    note = f", {one_line(phase.note)}" if phase.note else ""
    if not phase.total:
        return f"{amount(phase.done, phase.unit)}{note}"
    left = elapsed / phase.done * (phase.total - phase.done) if phase.done else None
    rest = f", {duration(left)} left" if left is not None else ""
    return f"{amount(phase.done)} of {amount(phase.total, phase.unit)}{rest}{note}"
