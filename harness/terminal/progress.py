"""Progress of phases such as downloads, tokenization and training: as bars on a terminal, as lines in a log."""

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
    """Shows the progress of phases."""

    brief: bool
    """Whether phases that end within `MIN_SECONDS` leave no line."""

    transient: bool
    """Whether no phase that ends leaves a line."""

    def update(self, stage: int, phase: str, done: int, total: int, note: str, unit: str) -> None:
        """Record that a phase has done `done` of `total` units (0: unknown)."""

    def end(self) -> None:
        """Finish all active phases."""

    def abort(self) -> None:
        """Report all active phases as interrupted."""


class NullProgress:
    """Show no progress."""

    brief = False
    transient = False

    def update(self, stage: int, phase: str, done: int, total: int, note: str, unit: str) -> None:
        """Do nothing."""

    def end(self) -> None:
        """Do nothing."""

    def abort(self) -> None:
        """Do nothing."""


LINES_PER_PHASE = 4
MIN_SECONDS, FIRST_LINE_AFTER, MAX_SILENCE = 10.0, 30.0, 600.0
"""Seconds: phases that end earlier get one line; time of the first line of a slow phase; longest silence of a log."""


@dataclass
class _LoggedPhase:
    started: float
    last_line_at: float
    done: int = 0
    total: int = 0
    note: str = ""
    unit: str = ""


class ProgressLog:
    """Prints the progress of phases as lines of text.

    - A phase that takes less than 10 s is one line, at its end.
    - A longer phase has a line at each quarter, but none within 10 s of the previous line.
    - It has another line after 30 s, and then after each fifth of the elapsed time.
    - A log is silent for at most 10 minutes, or for 1/25 of the elapsed time where that is longer. A phase of an hour
      has about 25 lines, one of four days about 130.
    - A phase without counts has a line at its start, and one at its end only if it took 10 s or more.

    Args:
        emit: Prints a line.
        clock: Returns the time in seconds.

    Attributes:
        brief: While set, phases that take less than 10 s print nothing.
        transient: While set, phases print nothing when they end.
    """

    def __init__(self, emit: Callable[[Text], None], clock: Callable[[], float] = time.monotonic) -> None:
        self._emit = emit
        self._clock = clock
        self.brief = False
        self.transient = False
        self._phases: dict[str, _LoggedPhase] = {}
        self._ended: dict[str, int] = {}

    def update(self, stage: int, phase: str, done: int, total: int, note: str, unit: str) -> None:
        """Record that a phase has done `done` of `total` units (0: unknown)."""
        if self._ended.get(phase) == total and done >= total > 0:
            return
        now = self._clock()
        active = self._phases.get(phase)
        if active is None:
            self._end_unbounded()
            active = self._phases[phase] = _LoggedPhase(now, now)
            self._ended.pop(phase, None)
            if not (total or done or self.brief):
                self._emit_line(phase, one_line(note) or "started")
        quarter = _quarter(active.done, total)
        active.done, active.total, active.note, active.unit = done, total, note, unit
        if done >= total > 0:
            self._finish(phase)
            return
        silence, elapsed = now - active.last_line_at, now - active.started
        # Job schedulers may kill a job whose log is silent for more than 10 minutes.
        due = silence >= min(max(FIRST_LINE_AFTER, elapsed / 5), max(MAX_SILENCE, elapsed / 25))
        if due or (_quarter(done, total) > quarter and silence >= MIN_SECONDS):
            active.last_line_at = now
            self._emit_line(phase, _format_progress(active, elapsed))

    def end(self) -> None:
        """Finish all active phases."""
        for phase in list(self._phases):
            self._finish(phase)
        self._ended.clear()

    def abort(self) -> None:
        """Report all active phases as interrupted."""
        for phase, active in self._phases.items():
            self._emit_line(phase, f"interrupted after {format_duration(self._clock() - active.started)}")
        self._phases.clear()

    def _end_unbounded(self) -> None:
        # A phase of unknown length does not report its end: it ends when the next phase starts.
        for phase in [name for name, active in self._phases.items() if not active.total]:
            self._finish(phase)

    def _finish(self, phase: str) -> None:
        active = self._phases.pop(phase)
        self._ended[phase] = active.total
        took = self._clock() - active.started
        if self.transient or (took < MIN_SECONDS and (self.brief or not (active.total or active.done))):
            return
        count = f"{format_count(active.done, active.unit)} " if active.done else ""
        note = f", {one_line(active.note)}" if active.note else ""
        self._emit_line(phase, f"{count}in {format_duration(took)}{note}")

    def _emit_line(self, phase: str, text: str) -> None:
        self._emit(Text(f"{one_line(phase)}: {text}"))


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
"""Seconds over which the speed is averaged; an optimizer step on a CPU takes seconds."""


class _CountColumn(ProgressColumn):
    """Done and total units of a phase."""

    def render(self, task: Task) -> Text:
        unit = str(task.fields["unit"])
        if task.total is None:
            return Text(format_count(task.completed, unit) if task.completed else "", style="cyan")
        if unit == "B":
            return Text(f"{format_count(task.completed, unit)} of {format_count(task.total, unit)}", style="cyan")
        return Text(f"{format_count(task.completed)}/{format_count(task.total, unit)}", style="cyan")


class _TimeLeftColumn(ProgressColumn):
    """Estimated time left of a phase."""

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
    """Shows phases as bars at the bottom of a terminal; each leaves one line when it ends.

    Args:
        console: The terminal.
        stderr: Whether the error stream is the same terminal; its output is then printed above the bars.

    Attributes:
        brief: While set, phases that take less than 10 s leave no line.
        transient: While set, phases leave no line.
    """

    def __init__(self, console: Console, *, stderr: bool) -> None:
        self._console = console
        self._stderr = stderr
        self.brief = False
        self.transient = False
        self._progress: Progress | None = None
        self._phases: dict[str, _PhaseBar] = {}
        self._ended: dict[str, int] = {}

    def update(self, stage: int, phase: str, done: int, total: int, note: str, unit: str) -> None:
        """Record that a phase has done `done` of `total` units (0: unknown)."""
        if self._ended.get(phase) == total and done >= total > 0:
            return
        active = self._phases.get(phase)
        if active is None:
            self._end_unbounded()
            self._ended.pop(phase, None)
            task = self._live_progress().add_task(one_line(phase), total=total or None, note="", unit=unit)
            active = self._phases[phase] = _PhaseBar(task, time.monotonic(), done, total, note, unit)
        active.done, active.total, active.note, active.unit = done, total, note, unit
        self._live_progress().update(active.task, completed=done, total=total or None, note=one_line(note), unit=unit)
        if done >= total > 0:
            self._finish(phase)

    def end(self) -> None:
        """Finish all active phases."""
        for phase in list(self._phases):
            self._finish(phase)
        self._ended.clear()
        self._stop()

    def abort(self) -> None:
        """Report all active phases as interrupted."""
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
        # Live bars hide the cursor and capture the output of others: they exist only while a phase is active.
        if self._progress is not None:
            self._progress.stop()
            self._progress = None

    def _end_unbounded(self) -> None:
        # A phase of unknown length does not report its end: it ends when the next phase starts.
        for phase in [name for name, active in self._phases.items() if not active.total]:
            self._finish(phase)

    def _finish(self, phase: str, *, ended: bool = True) -> None:
        mark, style = ("✓", "green") if ended else ("✗", "red")
        active = self._phases.pop(phase)
        self._ended[phase] = active.total
        count = f"  {format_count(active.done, active.unit)}" if active.done else ""
        note = f"  {one_line(active.note)}" if active.note else ""
        seconds = time.monotonic() - active.started
        took = f"  {format_duration(seconds)}"
        line = Text.assemble((f"{mark} ", style), one_line(phase), (count, "cyan"), (took, "dim"), (note, "dim"))
        self._live_progress().remove_task(active.task)
        if not (ended and (self.transient or (self.brief and seconds < MIN_SECONDS))):
            self._console.print(line)
