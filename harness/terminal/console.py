"""Events → what a person sees while a run goes on, and its report at the end.

A listener like others; knows events and streams. What shows phases is a `progress.ProgressDisplay`: bars, or plain
lines. The words for each event, and which warnings are told, stand in `messages`.
"""

from __future__ import annotations

import json as json_module
import os
import sys
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Literal, TextIO

from rich.console import Console as RichConsole
from rich.text import Text

from harness.hookspecs import hookimpl
from harness.report import run_report
from harness.terminal import messages, report_table
from harness.terminal.messages import WarningBuffer
from harness.terminal.progress import NullProgress, ProgressBars, ProgressDisplay, ProgressLog
from harness.types import Event, Plan
from harness.utils.formatting import one_line

ConsoleMode = Literal["terminal", "plain", "quiet", "json"]

MAX_WARNING_CHARS = 2000
"""Characters of a warning: a guard against what others raise."""


class Console:
    """Shows a run.

    mode: `terminal` (progress bars, colour), `plain` (a few lines a phase, for logs), `quiet` (warnings alone, on the
        error stream) or `json` (one JSON document at the end on the output, plain lines on the error stream).
    file, errors: output and error stream; standard output and standard error when left out.
    show_rows: show warnings with the rows that they name, which else stand in the run's folder.

    As a context manager it leaves the terminal as it was, whatever happens.
    """

    def __init__(
        self, mode: ConsoleMode, file: TextIO | None = None, errors: TextIO | None = None, *, show_rows: bool = False
    ) -> None:
        self.mode = mode
        self._whole = show_rows
        self._file = file or sys.stdout
        self._errors = errors or sys.stderr
        for stream in (self._file, self._errors):
            _escape_unencodable(stream)
        shown = self._errors if mode == "json" else self._file
        self._rich = RichConsole(file=shown, highlight=False, **_console_options(mode, shown))
        self._phases: ProgressDisplay = NullProgress()
        if mode == "terminal":
            self._phases = ProgressBars(self._rich, stderr=self._errors.isatty())
        elif mode in ("plain", "json"):
            self._phases = ProgressLog(self._print)
        self._plan: Plan | None = None
        self._arm: Mapping[str, Any] | None = None
        self._notices = WarningBuffer(self._show_warning)
        self._shown: dict[str, str] = {}  # what was said of an arm's data -> that arm
        self._given = False  # the one document of `json`
        self._failure: Mapping[str, Any] | None = None  # of an arm: the document, if none of the experiment comes

    @classmethod
    def from_options(cls, *, quiet: bool = False, json: bool = False, show_rows: bool = False) -> Console:
        """The console for what was asked: by option, else a terminal's where standard output is one, else plain."""
        if json:
            return cls("json", show_rows=show_rows)
        if quiet:
            return cls("quiet", show_rows=show_rows)
        # Not rich's own answer: FORCE_COLOR, which many CI systems set, would put moving bars into a log.
        moving = sys.stdout.isatty() and os.environ.get("TERM", "").lower() not in ("dumb", "unknown")
        return cls("terminal" if moving else "plain", show_rows=show_rows)

    def __enter__(self) -> Console:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Leave the terminal as it was. May be called more than once."""
        self._phases.abort()
        self._notices.flush()
        if self._failure is not None:
            self._write_json_document(self._failure)

    @hookimpl
    def harness_on_event(self, event: Event) -> None:
        """Show an event."""
        if event.type == "progress":
            data = event.data
            self._phases.update(event.stage, data["phase"], data["done"], data["total"], data["note"], data["unit"])
            return
        if event.type == "warning":
            self._notices.add(str(event.data["text"]), event.data.get("rows", ()))
            return
        if event.type == "step":
            return
        if event.type == "measured":  # the training goes on
            self._print(messages.format_mid_stage_scores(event.data))
            return
        if event.type == "run_failed":
            self._phases.abort()
        else:
            self._phases.end()
        handler = getattr(self, f"_{event.type}", None)
        if handler is not None:
            handler(event.stage, event.data)

    def _run_started(self, stage: int, data: Mapping[str, Any]) -> None:
        self._plan, self._arm = data["plan"], data.get("arm")
        self._phases.brief = False
        self._print(messages.format_run_start(data))

    def _data(self, stage: int, data: Mapping[str, Any]) -> None:
        if self._arm is not None:
            said = messages.data_summary_key(data, self._plan)
            if said in self._shown:
                self._print(Text(f"data: as of arm {one_line(self._shown[said])}", style="dim"))
                return
            self._shown[said] = self._arm["name"]
        for part in messages.format_data(data, self._plan):
            self._print(part)

    def _evaluated(self, stage: int, data: Mapping[str, Any]) -> None:
        for line in messages.format_scores(stage, data["evaluations"]):
            self._print(line)

    def _variant(self, stage: int, data: Mapping[str, Any]) -> None:
        for line in messages.format_variant(stage, data):
            self._print(line)

    def _arm_preparing(self, stage: int, data: Mapping[str, Any]) -> None:
        self._phases.brief = True
        self._notices.set_arm(data["arm"])

    def _arm_prepared(self, stage: int, data: Mapping[str, Any]) -> None:
        self._print(messages.format_arm_prepared(data))

    def _arms_prepared(self, stage: int, data: Mapping[str, Any]) -> None:
        self._phases.brief = False
        self._notices.flush()

    def _arm_started(self, stage: int, data: Mapping[str, Any]) -> None:
        self._arm = {"name": data["arm"]}
        self._phases.brief = True  # it was prepared before, and is again, from what is kept of that
        self._print(Text())
        self._print(messages.format_arm_start(data))

    def _arm_finished(self, stage: int, data: Mapping[str, Any]) -> None:
        if data["again"]:
            self._print(Text("has its result already", style="dim"))

    def _arms_finished(self, stage: int, data: Mapping[str, Any]) -> None:
        if self.mode == "json":
            self._write_json_document(data["experiment"].to_json())
            return
        from harness.terminal.arms_table import format_arms

        self._print(Text())
        self._print(format_arms(data["experiment"]))

    def _stage_started(self, stage: int, data: Mapping[str, Any]) -> None:
        self._print(messages.format_stage_start(stage, data, self._plan))

    def _restored(self, stage: int, data: Mapping[str, Any]) -> None:
        self._print(Text(f"back to the weights of update {data['step']:,}, the best that were measured"))

    def _stage_finished(self, stage: int, data: Mapping[str, Any]) -> None:
        self._print(messages.format_stage_end(data))

    def _run_finished(self, stage: int, data: Mapping[str, Any]) -> None:
        made: run_report.Report = data["report"]
        if self.mode == "json":
            if self._arm is None:  # of an experiment, the comparison is the one document
                self._write_json_document(made.to_json())
            return
        self._print(Text())
        self._print(report_table.format_report(made))

    def _run_closed(self, stage: int, data: Mapping[str, Any]) -> None:
        if self.mode == "json" and self._arm is None and "tracking" not in data["lacked"]:
            self._write_json_document(data["report"].to_json())  # else it has been told as that of a run that finished
        self._print(messages.format_run_completed(data))

    def _run_failed(self, stage: int, data: Mapping[str, Any]) -> None:
        # The error itself is said once, by the command that it ends.
        if self.mode == "json":
            failure = {"error": str(data["error"]), "folder": data.get("folder")}
            if self._arm is None:
                self._write_json_document(failure)
            else:
                self._failure = self._failure or failure
        elif data.get("folder"):
            self._print(Text(f"stopped; what was made stays in {one_line(str(data['folder']))}", style="yellow"))

    def _print(self, thing: Any) -> None:
        if self.mode != "quiet":
            # A log has no width to wrap a line at, and nowhere may a command lose its end.
            self._rich.print(thing, crop=False, soft_wrap=isinstance(thing, Text) and self.mode != "terminal")

    def _show_warning(self, arms: str, text: str, rows: Sequence[str]) -> None:
        line = Text.assemble(("warning: ", "bold yellow"), (f"{one_line(arms)}: " if arms else "", "bold"))
        line.append(one_line(text, MAX_WARNING_CHARS), "yellow")
        if self._whole:
            line.append("".join(f"\n  {one_line(row)}" for row in rows), "yellow")
        elif rows:
            line.append("; which: data.json in the run's folder, or harness check", "dim")
        if self.mode == "terminal" and self._errors.isatty():
            # Above the bars; written past them it would break them up.
            self._rich.print(line)
        else:
            RichConsole(file=self._errors, highlight=False, soft_wrap=True).print(line)

    def _write_json_document(self, value: Mapping[str, Any]) -> None:
        if self._given:  # a finished run whose scores break a limit has its report, and the command says the rest
            return
        self._given = True
        # ASCII: a reader in any encoding gets the same document.
        self._file.write(json_module.dumps(value, indent=2) + "\n")
        self._file.flush()


def _console_options(mode: ConsoleMode, stream: TextIO) -> dict[str, Any]:
    if mode == "terminal":
        return {}
    # A file has no width; 100 columns hold the report's tables.
    return {"width": 100, "color_system": None, "force_terminal": False}


def _escape_unencodable(stream: TextIO) -> None:
    # A character that the stream's encoding lacks must not end a run.
    reconfigure = getattr(stream, "reconfigure", None)
    if reconfigure is not None and (stream.encoding or "").lower().replace("-", "") != "utf8":
        reconfigure(errors="backslashreplace")
