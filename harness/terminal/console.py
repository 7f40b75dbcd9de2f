"""The console: shows the events of a run, and its report at the end.

A listener like any other. Phases are shown by a `progress.ProgressDisplay` (progress bars, or plain lines for a log);
the lines for the other events are formatted in `messages`.
"""

from __future__ import annotations

import json as json_module
import os
import sys
import time
from collections.abc import Mapping, Sequence
from functools import singledispatchmethod
from importlib.util import find_spec
from types import TracebackType
from typing import Any, Literal, TextIO

from rich.console import Console as RichConsole
from rich.console import RenderableType
from rich.text import Text

from harness import events
from harness.hookspecs import hookimpl
from harness.report import run_report
from harness.terminal import messages, report_table
from harness.terminal.messages import WarningBuffer
from harness.terminal.progress import NullProgress, ProgressBars, ProgressDisplay, ProgressLog
from harness.types import Plan
from harness.utils.formatting import one_line
from harness.utils.output import result_stream

ConsoleMode = Literal["terminal", "plain", "quiet", "json"]

MAX_WARNING_CHARS = 2000
"""Largest number of characters of a warning; messages of other libraries may be very long."""

_OF_AN_EXPERIMENT = (
    events.ArmPreparing,
    events.ArmPrepared,
    events.ArmsPrepared,
    events.ArmStarted,
    events.ArmFinished,
    events.ArmsFinished,
    events.RunStarted,
    events.WarningRaised,
    events.ProgressUpdated,
    events.RunFinished,
    events.RunFailed,
    events.InterruptedRunCompleted,
)
"""Events that are shown in an experiment; every other one is in the folder of its arm."""

_WITHIN_A_PHASE = (events.ProgressUpdated, events.WarningRaised, events.StepLogged, events.MidStageEvaluated)
"""Events that do not end the phase that is shown."""


class Console:
    """Shows a run on a terminal or in a log.

    As a context manager it restores the terminal, however the run ends.

    Attributes:
        mode: `terminal` (progress bars, color), `plain` (a few lines a phase, for logs), `quiet` (only warnings, on
            the error stream) or `json` (one JSON document at the end on the output, plain lines on the error stream).
    """

    def __init__(
        self, mode: ConsoleMode, file: TextIO | None = None, errors: TextIO | None = None, *, show_rows: bool = False
    ) -> None:
        """Create a console.

        Args:
            mode: See the class.
            file: The output; standard output by default.
            errors: The error stream; standard error by default.
            show_rows: Whether warnings are shown with the rows that they name. Otherwise these are in the run's folder.
        """
        self.mode = mode
        self._show_rows = show_rows
        self._file = file or result_stream()
        self._errors = errors or sys.stderr
        for stream in (self._file, self._errors):
            _escape_unencodable(stream)
        stream = self._errors if mode == "json" else self._file
        self._rich = RichConsole(file=stream, highlight=False, **_console_options(mode))
        self._phases: ProgressDisplay = NullProgress()
        if mode == "terminal":
            self._phases = ProgressBars(self._rich, stderr=self._errors.isatty())
        elif mode in ("plain", "json"):
            self._phases = ProgressLog(self._print)
        self._plan: Plan | None = None
        self._arm: str | None = None
        self._arm_starts: dict[str, tuple[events.ArmStarted, float]] = {}  # arm -> its start and time, in seconds
        self._in_experiment = False
        self._warnings = WarningBuffer(self._show_warning)
        self._json_written = False
        self._arm_failure: Mapping[str, Any] | None = None  # the JSON document, if no comparison follows

    @classmethod
    def from_options(cls, *, quiet: bool = False, json: bool = False, show_rows: bool = False) -> Console:
        """Create the console for the options of a command; without options, by where the output goes.

        A terminal, or a notebook with ipywidgets, gets progress bars.
        """
        if json:
            return cls("json", show_rows=show_rows)
        if quiet:
            return cls("quiet", show_rows=show_rows)
        if RichConsole().is_jupyter:
            return cls("terminal" if find_spec("ipywidgets") else "plain", show_rows=show_rows)
        # rich's own check is not used: FORCE_COLOR, which many CI systems set, would put progress bars into a log.
        can_move_cursor = sys.stdout.isatty() and os.environ.get("TERM", "").lower() not in ("dumb", "unknown")
        return cls("terminal" if can_move_cursor else "plain", show_rows=show_rows)

    def __enter__(self) -> Console:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Restore the terminal. May be called more than once."""
        self._phases.abort()
        self._warnings.flush()
        if self._arm_failure is not None:
            self._write_json_document(self._arm_failure)

    @hookimpl
    def harness_on_event(self, event: events.Event) -> None:
        """Show an event."""
        if not isinstance(event, _WITHIN_A_PHASE):
            if isinstance(event, events.RunFailed):
                self._phases.abort()
            else:
                self._phases.end()
        if not self._in_experiment or isinstance(event, _OF_AN_EXPERIMENT):
            self._show(event)

    @singledispatchmethod
    def _show(self, event: events.Event) -> None:
        """Show an event by its class; other classes are ignored."""

    @_show.register
    def _show_progress(self, event: events.ProgressUpdated) -> None:
        if self._in_experiment and self.mode != "terminal":
            return  # a log of an experiment has one line for each arm
        self._phases.update(event.stage_index, event.phase, event.done, event.total, event.note, event.unit)

    @_show.register
    def _add_warning(self, event: events.WarningRaised) -> None:
        self._warnings.add(event.text, event.rows)

    @_show.register
    def _show_run_start(self, event: events.RunStarted) -> None:
        self._plan, self._arm = event.plan, event.arm["name"] if event.arm else None
        self._phases.brief = False
        if not self._in_experiment:
            self._print(messages.format_run_start(event))

    @_show.register
    def _show_tracking(self, event: events.TrackingStarted) -> None:
        self._print(messages.format_tracking_start(event))

    @_show.register
    def _show_data(self, event: events.DataPrepared) -> None:
        for part in messages.format_data(event):
            self._print(part)

    @_show.register
    def _show_written_rows(self, event: events.RowsWritten) -> None:
        for line in messages.format_written_rows(event, self._plan):
            self._print(line)

    @_show.register
    def _show_evaluations(self, event: events.SuitesEvaluated) -> None:
        for line in messages.format_scores(event.stage_index, event.evaluations):
            self._print(line)

    @_show.register
    def _show_variant(self, event: events.VariantEvaluated) -> None:
        for line in messages.format_variant(event):
            self._print(line)

    @_show.register
    def _show_arm_preparation(self, event: events.ArmPreparing) -> None:
        self._phases.brief = True
        self._warnings.set_arm(event.arm, event.method or event.arm)

    @_show.register
    def _show_prepared_arm(self, event: events.ArmPrepared) -> None:
        self._print(messages.format_arm_prepared(event))

    @_show.register
    def _show_arm_warnings(self, event: events.ArmsPrepared) -> None:
        self._phases.brief = False
        self._warnings.flush()

    @_show.register
    def _show_arm_start(self, event: events.ArmStarted) -> None:
        self._arm = event.arm
        self._arm_starts[event.arm] = event, time.monotonic()
        self._in_experiment = self._phases.transient = True

    @_show.register
    def _show_arm_end(self, event: events.ArmFinished) -> None:
        if event.arm in self._arm_starts:  # arms that run side by side end in another order
            start, started_at = self._arm_starts.pop(event.arm)
            self._print(messages.format_arm_end(start, event, time.monotonic() - started_at))

    @_show.register
    def _show_comparison(self, event: events.ArmsFinished) -> None:
        if self.mode == "json":
            self._write_json_document(event.experiment.to_json())
            return
        self._in_experiment = self._phases.transient = False
        from harness.terminal.arms_table import format_arms

        self._print(Text())
        self._print(format_arms(event.experiment))
        if event.view is not None:
            self._print(messages.format_view(event))

    @_show.register
    def _show_stage_start(self, event: events.StageStarted) -> None:
        self._print(messages.format_stage_start(event, self._plan))

    @_show.register
    def _show_mid_stage_scores(self, event: events.MidStageEvaluated) -> None:
        self._print(messages.format_mid_stage_scores(event))

    @_show.register
    def _show_restored_weights(self, event: events.BestWeightsRestored) -> None:
        self._print(Text(f"restored the best weights, of step {event.step:,}"))

    @_show.register
    def _show_stage_end(self, event: events.StageFinished) -> None:
        self._print(messages.format_stage_end(event))

    @_show.register
    def _show_report(self, event: events.RunFinished) -> None:
        report: run_report.Report = event.report
        if self.mode == "json":
            if self._arm is None:  # of an experiment, only the comparison is written
                self._write_json_document(report.to_json())
            return
        if self._in_experiment:
            return
        self._print(Text())
        self._print(report_table.format_report(report))

    @_show.register
    def _show_completed_run(self, event: events.InterruptedRunCompleted) -> None:
        # With "tracking", `RunFinished` was emitted too and its report is written already.
        if self.mode == "json" and self._arm is None and "tracking" not in event.completed:
            self._write_json_document(event.report.to_json())
        if not self._in_experiment:
            self._print(messages.format_run_completed(event))

    @_show.register
    def _show_failure(self, event: events.RunFailed) -> None:
        # The command prints the error itself.
        if self.mode == "json":
            failure = {"error": event.error, "folder": event.folder}
            if self._arm is None:
                self._write_json_document(failure)
            else:
                self._arm_failure = self._arm_failure or failure
        elif event.folder and not event.interrupted:  # the command prints how to resume what was interrupted
            self._print(Text(messages.format_stop(event, is_arm=self._arm is not None), style="yellow"))

    def _print(self, content: RenderableType) -> None:
        if self.mode != "quiet":
            # A log has no width at which to wrap, and a command in a message must not be cropped.
            self._rich.print(content, crop=False, soft_wrap=isinstance(content, Text) and self.mode != "terminal")

    def _show_warning(self, arms: str, text: str, rows: Sequence[str]) -> None:
        line = Text.assemble(("warning: ", "bold yellow"), (f"{one_line(arms)}: " if arms else "", "bold"))
        line.append(one_line(text, MAX_WARNING_CHARS), "yellow")
        if self._show_rows:
            line.append("".join(f"\n  {one_line(row)}" for row in rows), "yellow")
        elif rows:
            line.append("; rows: data.json in the run's folder, or harness check", "dim")
        if self.mode == "terminal" and self._errors.isatty():
            # Through rich, so that the line goes above the progress bars.
            self._rich.print(line)
        else:
            RichConsole(file=self._errors, highlight=False, soft_wrap=True).print(line)

    def _write_json_document(self, value: Mapping[str, Any]) -> None:
        if self._json_written:  # e.g. the report of a run that then fails because a suite violates its limits
            return
        self._json_written = True
        # ASCII only, so that the document is the same in every encoding.
        self._file.write(json_module.dumps(value, indent=2) + "\n")
        self._file.flush()


def _console_options(mode: ConsoleMode) -> dict[str, Any]:
    if mode == "terminal":
        return {}
    # A file has no width; the tables of the report fit into 100 columns.
    return {"width": 100, "color_system": None, "force_terminal": False, "force_jupyter": False}


def _escape_unencodable(stream: TextIO) -> None:
    # A character that the encoding of the stream does not have must not end the run.
    reconfigure = getattr(stream, "reconfigure", None)
    if reconfigure is not None and (stream.encoding or "").lower().replace("-", "") != "utf8":
        reconfigure(errors="backslashreplace")
