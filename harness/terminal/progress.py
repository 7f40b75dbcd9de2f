"""Phases as progress bars with the time left; each leaves one line behind."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, SpinnerColumn, Task, TaskID, TextColumn
from rich.text import Text

from harness.utils.formatting import format_count, format_duration, one_line


class ProgressDisplay(Protocol):
    """A way to show phases that move."""

    brief: bool
    """Whether phases that are soon over are not worth a line."""

    def update(self, stage: int, phase: str, done: int, total: int, note: str, unit: str) -> None:
        """A phase has come to `done` of `total` (0: unknown)."""

    def end(self) -> None:
        """Every phase that still goes on is over."""

    def abort(self) -> None:
        """Every phase that still goes on has been broken off."""


class NullProgress:
    """Shows no phase at all."""

    brief = False

    def update(self, stage: int, phase: str, done: int, total: int, note: str, unit: str) -> None:
        """Shows nothing."""

    def end(self) -> None:
        """Shows nothing."""

    def abort(self) -> None:
        """Shows nothing."""


LINES_PER_PHASE = 4
MIN_SECONDS, FIRST_LINE_AFTER, MAX_SILENCE = 10.0, 30.0, 600.0
"""Seconds: what ends before is told of once; the first line of a slow phase; the longest that a log is silent."""


@dataclass
class _LoggedPhase:
    started: float
    last_line_at: float
    done: int = 0
    total: int = 0
    note: str = ""
    unit: str = ""


class ProgressLog:
    """Prints lines of phases.

    A phase of less than 10 s is one line, at its end. Before that there is one at each quarter, but none within 10 s of
    the one before; and one after 30 s, later after a fifth of the time gone by, but at least every 10 minutes, until
    these too become too many: a phase of an hour has about twenty-five, one of four days a hundred and thirty. One that
    counts nothing is told of when it begins, and at its end only if it took longer.

    brief: as long as it is set, phases of less than 10 s are not told of at all.
    """

    def __init__(self, emit: Callable[[Text], None], clock: Callable[[], float] = time.monotonic) -> None:
        self._say = emit
        self._clock = clock
        self.brief = False
        self._phases: dict[str, _LoggedPhase] = {}
        self._ended: dict[str, int] = {}

    def update(self, stage: int, phase: str, done: int, total: int, note: str, unit: str) -> None:
        """A phase has come to `done` of `total` (0: unknown)."""
        if self._ended.get(phase) == total and done >= total > 0:
            return
        now = self._clock()
        known = self._phases.get(phase)
        if known is None:
            self._end_unbounded()
            known = self._phases[phase] = _LoggedPhase(now, now)
            self._ended.pop(phase, None)
            if not (total or done or self.brief):
                self._emit_line(phase, one_line(note) or "begins")
        quarter = _quarter(known.done, total)
        known.done, known.total, known.note, known.unit = done, total, note, unit
        if done >= total > 0:
            self._finish(phase)
            return
        since, elapsed = now - known.last_line_at, now - known.started
        # Systems that run jobs take ten silent minutes for a job that hangs.
        due = since >= min(max(FIRST_LINE_AFTER, elapsed / 5), max(MAX_SILENCE, elapsed / 25))
        if due or (_quarter(done, total) > quarter and since >= MIN_SECONDS):
            known.last_line_at = now
            self._emit_line(phase, _format_progress(known, elapsed))

    def end(self) -> None:
        """Every phase that still goes on is over."""
        for phase in list(self._phases):
            self._finish(phase)
        self._ended.clear()

    def abort(self) -> None:
        """Every phase that still goes on has been broken off."""
        for phase, known in self._phases.items():
            self._emit_line(phase, f"broken off after {format_duration(self._clock() - known.started)}")
        self._phases.clear()

    def _end_unbounded(self) -> None:
        # Who does not know how long it takes does not say that it is over: the next phase says it.
        for phase in [phase for phase, known in self._phases.items() if not known.total]:
            self._finish(phase)

    def _finish(self, phase: str) -> None:
        known = self._phases.pop(phase)
        self._ended[phase] = known.total
        took = self._clock() - known.started
        if took < MIN_SECONDS and (self.brief or not (known.total or known.done)):
            return
        count = f"{format_count(known.done, known.unit)} " if known.done else ""
        note = f", {one_line(known.note)}" if known.note else ""
        self._emit_line(phase, f"{count}in {format_duration(took)}{note}")

    def _emit_line(self, phase: str, text: str) -> None:
        self._say(Text(f"{one_line(phase)}: {text}"))


def _quarter(done: int, total: int) -> int:
    return done * LINES_PER_PHASE // total if total else 0


def _format_progress(phase: _LoggedPhase, elapsed: float) -> str:
    note = f", {one_line(phase.note)}" if phase.note else ""
    if not phase.total:
        return f"{format_count(phase.done, phase.unit)}{note}"
    left = elapsed / phase.done * (phase.total - phase.done) if phase.done else None
    rest = f", {format_duration(left)} left" if left is not None else ""
    return f"{format_count(phase.done)} of {format_count(phase.total, phase.unit)}{rest}{note}"


SPEED_AVERAGE_SECONDS = 120.0
"""Seconds over which the speed is averaged: an update on a CPU takes seconds."""


class _CountColumn(ProgressColumn):
    """How far a phase has come, in its unit."""

    def render(self, task: Task) -> Text:
        unit = str(task.fields["unit"])
        if task.total is None:
            return Text(format_count(task.completed, unit) if task.completed else "", style="cyan")
        if unit == "B":
            return Text(f"{format_count(task.completed, unit)} of {format_count(task.total, unit)}", style="cyan")
        return Text(f"{format_count(task.completed)}/{format_count(task.total, unit)}", style="cyan")


class _TimeLeftColumn(ProgressColumn):
    """The time that the phase will still take."""

    max_refresh = 0.5

    def render(self, task: Task) -> Text:
        left = task.time_remaining
        return Text("" if left is None else f"{format_duration(left)} left", style="bold")


@dataclass
class _PhaseBar:
    task: TaskID
    started: float
    done: int
    total: int
    note: str
    unit: str


class ProgressBars:
    """Shows phases as bars at the bottom of a terminal. stderr: whether the error stream is the same terminal, so that
    what is written there goes above the bars. brief: as long as it is set, a phase of less than 10 s leaves no line."""

    def __init__(self, console: Console, *, stderr: bool) -> None:
        self._console = console
        self._stderr = stderr
        self.brief = False
        self._progress: Progress | None = None
        self._phases: dict[str, _PhaseBar] = {}
        self._ended: dict[str, int] = {}

    def update(self, stage: int, phase: str, done: int, total: int, note: str, unit: str) -> None:
        """A phase has come to `done` of `total` (0: unknown)."""
        if self._ended.get(phase) == total and done >= total > 0:
            return
        known = self._phases.get(phase)
        if known is None:
            self._end_unbounded()
            self._ended.pop(phase, None)
            task = self._live_progress().add_task(one_line(phase), total=total or None, note="", unit=unit)
            known = self._phases[phase] = _PhaseBar(task, time.monotonic(), done, total, note, unit)
        known.done, known.total, known.note, known.unit = done, total, note, unit
        self._live_progress().update(known.task, completed=done, total=total or None, note=one_line(note), unit=unit)
        if done >= total > 0:
            self._finish(phase)

    def end(self) -> None:
        """Every phase that still goes on is over."""
        for phase in list(self._phases):
            self._finish(phase)
        self._ended.clear()
        self._stop()

    def abort(self) -> None:
        """Every phase that still goes on has been broken off."""
        for phase in list(self._phases):
            self._finish(phase, ended=False)
        self._stop()

    def _live_progress(self) -> Progress:
        if self._progress is None:
            self._progress = Progress(
                SpinnerColumn(finished_text=" "),
                TextColumn("{task.description}", markup=False),
                BarColumn(bar_width=20),
                _CountColumn(),
                _TimeLeftColumn(),
                TextColumn("{task.fields[note]}", style="dim", markup=False),
                console=self._console,
                transient=True,
                refresh_per_second=5,
                speed_estimate_period=SPEED_AVERAGE_SECONDS,
                redirect_stderr=self._stderr,
            )
            self._progress.start()
        return self._progress

    def _stop(self) -> None:
        # Live bars hide the cursor and catch what others print: they are up only while something moves.
        if self._progress is not None:
            self._progress.stop()
            self._progress = None

    def _end_unbounded(self) -> None:
        # Who does not know how long it takes does not say that it is over: the next phase says it.
        for phase in [phase for phase, known in self._phases.items() if not known.total]:
            self._finish(phase)

    def _finish(self, phase: str, *, ended: bool = True) -> None:
        mark, style = ("✓", "green") if ended else ("✗", "red")
        known = self._phases.pop(phase)
        self._ended[phase] = known.total
        count = f"  {format_count(known.done, known.unit)}" if known.done else ""
        note = f"  {one_line(known.note)}" if known.note else ""
        seconds = time.monotonic() - known.started
        took = f"  {format_duration(seconds)}"
        line = Text.assemble((f"{mark} ", style), one_line(phase), (count, "cyan"), (took, "dim"), (note, "dim"))
        self._live_progress().remove_task(known.task)
        if not (ended and self.brief and seconds < MIN_SECONDS):
            self._console.print(line)
