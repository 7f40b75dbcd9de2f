"""How a report looks on a terminal, at any width, and as plain text.

Knows rich. Whatever the model or the data wrote is shown as text: never as markup, never as control characters.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from rich import box
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.table import Table
from rich.text import Text

from harness.report.run_report import Report, ScoreChange, Verdict
from harness.statistics.intervals import Estimate
from harness.tracking.mlflow_store import tracking_uri
from harness.types import Evaluation
from harness.utils.formatting import (
    decimal_places,
    encodable_segments,
    format_duration,
    format_number,
    one_line,
    printable,
    shorten_text,
)
from harness.utils.redaction import redact_text

VERDICT_STYLES: dict[Verdict, str] = {
    "better": "bold green",
    "worse": "bold red",
    "no evidence": "dim",
    "too few items": "yellow",
}
MAX_ANSWER_CHARS = 400

SUMMARY_DESCRIPTIONS = {
    "average_accuracy": "mean over tasks at the end",
    "learning_accuracy": "mean over tasks, each right after its own stage",
    "backward_transfer": "change of earlier tasks since their own stage",
    "forward_transfer": "later tasks before their own stage, against the base",
    "forgetting": "best before the last stage, less the end (Chaudhry)",
    "general_ability_delta": "change of the general suites since the base (TRACE)",
}
"""The summaries that a terminal shows; `report.json` has all of them."""
STAGE_COLUMN_WIDTH = 11


@dataclass(frozen=True)
class ReportTable:
    """The whole report as one renderable; it measures the console that it is shown on."""

    report: Report

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield from encodable_segments(Group(*self._parts(options.max_width)), console, options)

    def _parts(self, width: int) -> Iterator[RenderableType]:
        report = self.report
        if not report.changes:
            yield Text("nothing was evaluated: the spec has no suite", style="yellow")
            yield from _next_steps(report)
            return
        yield changes_table(report)
        yield Text(
            "difference: last stage − base model over the same items, 95 % interval in brackets; "
            "no evidence: the interval holds 0; ↓ lower is better",
            style="dim",
        )
        if any(change.needed for change in report.changes):
            yield Text("~n: items that would give a verdict, if the change is as large as it looks", style="dim")
        if len(report.stages) > 2:
            yield Text()
            yield from stages_tables(report, width)
            yield from forgetting_table(report)
        if report.examples:
            yield Text()
            yield from format_examples(report)
        if report.gate:
            yield Text()
            yield from format_gate_results(report)
        yield Text()
        yield from _next_steps(report)


def changes_table(report: Report) -> Table:
    """One row a score, grouped by suite: before → after, the difference with its interval, and the verdict."""
    table = _new_table("suite / metric")
    table.add_column("before → after", justify="right", no_wrap=True)
    table.add_column("difference [95 % interval]", justify="right", no_wrap=True)
    table.add_column("verdict", no_wrap=True)
    for suite, group in groupby(report.changes, key=lambda change: change.suite):
        changes = list(group)
        if table.row_count:
            table.add_row()
        table.add_row(Text(one_line(suite), style="bold"), *_suite_notes(report, changes[0]))
        for change in changes:
            table.add_row(
                _score_label(change), format_before_after(change), format_difference(change), format_verdict(change)
            )
    return table


def stages_tables(report: Report, width: int) -> Iterator[Table]:
    """The value of every score after every stage; as many stages beside each other as the width holds."""
    names = max(len(change.name) for change in report.changes) + 4
    columns = max((width - names) // STAGE_COLUMN_WIDTH, 1)
    for start in range(0, len(report.stages), columns):
        stages = report.stages[start : start + columns]
        table = _new_table("after stage")
        for name in stages:
            table.add_column(Text(one_line(name, STAGE_COLUMN_WIDTH - 2)), justify="right", no_wrap=True)
        for suite, group in groupby(report.changes, key=lambda change: change.suite):
            table.add_row(Text(printable(suite), style="bold"))
            for change in group:
                table.add_row(_score_label(change), *_stage_values(change, start, len(stages)))
        yield table


def forgetting_table(report: Report) -> Iterator[RenderableType]:
    """What the stages came to over all tasks: one row a summary, with its interval, for each score."""
    shown = [matrix for matrix in report.matrices if any(name in SUMMARY_DESCRIPTIONS for name in matrix.summaries)]
    if not shown:
        return
    yield Text()
    table = _new_table("over all tasks / metric")
    table.add_column("value [95 % interval]", justify="right", no_wrap=True)
    table.add_column("what it says", overflow="fold", style="dim")
    for matrix in shown:
        if table.row_count:
            table.add_row()
        arrow = "" if matrix.higher_is_better else " ↓"
        table.add_row(Text(f"{one_line(matrix.called)}{arrow}", style="bold"), "", "")
        for name, estimate in matrix.summaries.items():
            if name in SUMMARY_DESCRIPTIONS:
                table.add_row(Text(f" {name}"), _format_estimate(estimate), SUMMARY_DESCRIPTIONS[name])
    yield table
    yield Text("a metric where lower is better enters with its sign turned: forgetting above 0 is a loss", style="dim")


def scores_table(evaluations: Sequence[Evaluation]) -> RenderableType:
    """Every score with its interval, suite by suite and stage by stage, and what to know beside it."""
    table = _new_table("suite / metric")
    table.add_column("stage", justify="right", no_wrap=True)
    table.add_column("score [95 % interval]", justify="right", no_wrap=True)
    table.add_column("n", justify="right", no_wrap=True)
    table.add_column("beside", overflow="fold", style="yellow")
    for one in evaluations:
        if table.row_count:
            table.add_row()
        table.add_row(Text(one_line(one.suite), style="bold"))
        for score in one.scores:
            arrow = " ↓" if score.higher_is_better is False else ""
            beside = ", ".join(f"{count:,} {name.replace('_', ' ')}" for name, count in score.counts.items() if count)
            bounds = (score.value, score.low, score.high)
            value, low, high = (format_number(bound, decimal_places(bounds)) for bound in bounds)
            shown = Text.assemble(value, (f" [{low}, {high}]", "dim"))
            table.add_row(Text(f" {one_line(score.name)}{arrow}"), str(score.stage), shown, f"{score.n:,}", beside)
    return table


def format_gate_results(report: Report) -> Iterator[RenderableType]:
    """Every condition of the gate and what became of it."""
    yield Text("gate", style="bold")
    for one in report.gate:
        yield Text(f" {one_line(one.format_line())}", style="green" if one.passed else "bold red")


def format_examples(report: Report) -> Iterator[RenderableType]:
    """The drawn questions, each with the reference and both answers."""
    suite = one_line(report.examples[0].suite)
    count = len(report.examples)
    yield Text.assemble(
        (f"{count} held-out {'answer' if count == 1 else 'answers'} of {suite}", "bold"),
        (", drawn by the seed, not by their scores", "dim"),
    )
    grid = Table(box=None, show_header=False, pad_edge=False, padding=(0, 1))
    grid.add_column(no_wrap=True, style="dim")
    grid.add_column(overflow="fold")
    for index, one in enumerate(report.examples):
        if index:
            grid.add_row()
        grid.add_row("question", _shorten_answer(one.prompt, "bold"))
        grid.add_row("reference", _shorten_answer(one.reference, "cyan"))
        grid.add_row("before", _shorten_answer(one.before, ""))
        grid.add_row("after", _shorten_answer(one.after, "green"))
    yield grid


def format_before_after(change: ScoreChange) -> Text:
    """Both values with the same decimals."""
    places = decimal_places([change.before.value, change.after.value])
    return Text(f"{format_number(change.before.value, places)} → {format_number(change.after.value, places)}")


def format_difference(change: ScoreChange) -> Text:
    """The difference and its 95 % interval, all with their signs and the same decimals."""
    estimate = change.difference
    bounds = (estimate.value, estimate.low, estimate.high)
    places = decimal_places(bounds, digits=3)
    value, low, high = (format_number(one, places, sign=True) for one in bounds)
    return Text.assemble((value, VERDICT_STYLES[change.verdict]), (f" [{low}, {high}]", "dim"))


def format_verdict(change: ScoreChange) -> Text:
    """The verdict behind an arrow that points where the number went, up or down."""
    if change.verdict in ("no evidence", "too few items"):
        needed = f" (~n {change.needed:,})" if change.needed else ""
        return Text.assemble((change.verdict, VERDICT_STYLES[change.verdict]), (needed, "dim"))
    arrow = "▲" if change.difference.value > 0 else "▼"
    return Text(f"{arrow} {change.verdict}", style=VERDICT_STYLES[change.verdict])


def _format_estimate(estimate: Estimate) -> Text:
    bounds = (estimate.value, estimate.low, estimate.high)
    places = decimal_places(bounds, digits=3)
    value, low, high = (format_number(one, places, sign=True) for one in bounds)
    return Text.assemble(value, (f" [{low}, {high}]", "dim"))


def _new_table(first_column: str) -> Table:
    # Narrow gaps, and only the names may fold: four columns of figures just fit into 80 characters.
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0), show_edge=False)
    table.add_column(first_column, overflow="fold")
    return table


def _suite_notes(report: Report, change: ScoreChange) -> tuple[Text, Text]:
    facts = Text(f"{change.role}, n = {change.n:,}", style="dim")
    ends = report.answers.get(change.suite, {}).get("after", {})
    odd = [f"{ends[key]:,} {word}" for key, word in (("length", "cut off"), ("empty", "empty")) if ends.get(key)]
    return facts, Text(f"after: {', '.join(odd)}" if odd else "", style="yellow")


def _score_label(change: ScoreChange) -> Text:
    return Text(f" {one_line(change.name)}{'' if change.higher_is_better else ' ↓'}")


def _stage_values(change: ScoreChange, start: int, count: int) -> Iterator[str]:
    known = [one.value for one in change.after_stages if one is not None]
    for one in change.after_stages[start : start + count]:
        yield format_number(None if one is None else one.value, decimal_places(known))


def _shorten_answer(text: str, style: str) -> Text:
    if not text.strip():
        return Text("(nothing)", style="dim italic")
    lines = printable(text.strip()).splitlines()
    # An answer that is one long list must not push everything else off the screen.
    kept = "\n".join([*lines[:8], *([f"… (+{len(lines) - 8} lines)"] if len(lines) > 8 else [])])
    return Text(shorten_text(kept, MAX_ANSWER_CHARS), style=style)


def _next_steps(report: Report) -> Iterator[RenderableType]:
    run = report.run_info
    if "folder" in run:
        took = f"  ({format_duration(run['seconds'])})" if "seconds" in run else ""
        yield _command_line("run folder", str(run["folder"]), took)
        yield _command_line("read it", f"{run['folder']}/report.html")
    if run.get("uri"):
        uri = str(run["uri"])
        if "id" in run:
            # A store that `compare` would not find by itself.
            elsewhere = f" --uri {shlex.quote(uri)}" if uri != redact_text(tracking_uri(None)) else ""
            named = f"{shlex.quote(str(run['id']))}{elsewhere}"
            if Path(run.get("folder", "")).parent.name == "arms":
                named = shlex.quote(str(run["folder"]))  # the arm of another experiment may have the same name
            yield _command_line("compare", f"harness compare {named}")
        web = re.match("https?://", uri)
        yield _command_line("look at it", uri if web else f"mlflow ui --backend-store-uri {shlex.quote(uri)}")


def _command_line(label: str, command: str, note: str = "") -> Text:
    # Never wrapped: a command that is broken over two lines cannot be copied.
    line = Text.assemble((f"{label:<12}", "dim"), (printable(command), "bold"), (note, "dim"))
    line.no_wrap, line.overflow = True, "ignore"
    return line
