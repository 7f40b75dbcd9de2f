"""Phases as progress bars with the time left; each leaves one line behind."""

from __future__ import annotations

import time
from dataclasses import dataclass

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, SpinnerColumn, Task, TaskID, TextColumn
from rich.text import Text

from harness.console.lines import SOON
from harness.legible import amount, duration, one_line

PATIENCE = 120.0
"""Seconds over which the speed is averaged: an update on a CPU takes seconds."""


class _Count(ProgressColumn):
    """How far a phase has come, in its unit."""

    def render(self, task: Task) -> Text:
        unit = str(task.fields["unit"])
        if task.total is None:
            return Text(amount(task.completed, unit) if task.completed else "", style="cyan")
        if unit == "B":
            return Text(f"{amount(task.completed, unit)} of {amount(task.total, unit)}", style="cyan")
        return Text(f"{amount(task.completed)}/{amount(task.total, unit)}", style="cyan")


class _Left(ProgressColumn):
    """The time that the phase will still take."""

    max_refresh = 0.5

    def render(self, task: Task) -> Text:
        left = task.time_remaining
        return Text("" if left is None else f"{duration(left)} left", style="bold")


@dataclass
class _Phase:
    task: TaskID
    started: float
    done: int
    total: int
    note: str
    unit: str


class Bars:
    """Shows phases as bars at the bottom of a terminal. stderr: whether the error stream is the same terminal, so that
    what is written there goes above the bars. brief: as long as it is set, a phase of less than 10 s leaves no line."""

    def __init__(self, console: Console, *, stderr: bool) -> None:
        self._console = console
        self._stderr = stderr
        self.brief = False
        self._progress: Progress | None = None
        self._phases: dict[str, _Phase] = {}
        self._ended: dict[str, int] = {}

    def update(self, stage: int, phase: str, done: int, total: int, note: str, unit: str) -> None:
        """A phase has come to `done` of `total` (0: unknown)."""
        if self._ended.get(phase) == total and done >= total > 0:
            return
        known = self._phases.get(phase)
        if known is None:
            self._end_unbounded()
            self._ended.pop(phase, None)
            task = self._bars().add_task(one_line(phase), total=total or None, note="", unit=unit)
            known = self._phases[phase] = _Phase(task, time.monotonic(), done, total, note, unit)
        known.done, known.total, known.note, known.unit = done, total, note, unit
        self._bars().update(known.task, completed=done, total=total or None, note=one_line(note), unit=unit)
        if done >= total > 0:
            self._leave(phase)

    def end(self) -> None:
        """Every phase that still goes on is over."""
        for phase in list(self._phases):
            self._leave(phase)
        self._ended.clear()
        self._stop()

    def break_off(self) -> None:
        """Every phase that still goes on has been broken off."""
        for phase in list(self._phases):
            self._leave(phase, ended=False)
        self._stop()

    def _bars(self) -> Progress:
        if self._progress is None:
            self._progress = Progress(
                SpinnerColumn(finished_text=" "),
                TextColumn("{task.description}", markup=False),
                BarColumn(bar_width=20),
                _Count(),
                _Left(),
                TextColumn("{task.fields[note]}", style="dim", markup=False),
                console=self._console,
                transient=True,
                refresh_per_second=5,
                speed_estimate_period=PATIENCE,
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
            self._leave(phase)

    def _leave(self, phase: str, *, ended: bool = True) -> None:
        mark, style = ("✓", "green") if ended else ("✗", "red")
        known = self._phases.pop(phase)
        self._ended[phase] = known.total
        count = f"  {amount(known.done, known.unit)}" if known.done else ""
        note = f"  {one_line(known.note)}" if known.note else ""
        seconds = time.monotonic() - known.started
        took = f"  {duration(seconds)}"
        line = Text.assemble((f"{mark} ", style), one_line(phase), (count, "cyan"), (took, "dim"), (note, "dim"))
        self._bars().remove_task(known.task)
        if not (ended and self.brief and seconds < SOON):
            self._console.print(line)
