"""The report of a run as tables for a terminal of any width, and as plain text.

Texts of the model and the data are printed as text: never as markup, never as control characters.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from harness.report.display_text import SUMMARY_DESCRIPTIONS, describe_flips, format_incomplete_answers, format_interval
from harness.report.run_report import Report
from harness.report.score_change import ScoreChange
from harness.report.slices import SliceChange
from harness.terminal.tables import (
    GATE_STYLES,
    VERDICT_STYLES,
    TerminalPage,
    interval_text,
    mark_cut,
    new_table,
    shorten_answer,
)
from harness.tracking.mlflow_store import tracking_uri
from harness.types import Evaluation
from harness.utils.formatting import (
    decimal_places,
    format_number,
    format_phases,
    format_run_time,
    format_size,
    one_line,
    printable,
)
from harness.utils.phase_clock import phases_of_run_info
from harness.utils.redaction import redact_text
from harness.utils.shell_commands import harness_command
from harness.utils.stage_memory import format_memory

TERMINAL_SUMMARIES = (
    "average_accuracy",
    "learning_accuracy",
    "backward_transfer",
    "forward_transfer",
    "forgetting",
    "general_ability_delta",
)
"""The summaries that a terminal shows; `report.json` has all of them."""
STAGE_COLUMN_WIDTH = 11


def format_report(report: Report) -> RenderableType:
    """Build the complete report of a run: changes, stages, examples, gate and next steps."""
    return TerminalPage(lambda width: _report_parts(report, width))


def _report_parts(report: Report, width: int) -> Iterator[RenderableType]:
    if not report.changes:
        yield Text("nothing was evaluated: the spec has no suite", style="yellow")
        yield from _next_steps(report)
        return
    yield Text(one_line(report.verdict.headline), style="bold")
    for statement in report.verdict.retention_statements:
        yield Text(one_line(statement.text), style="dim")
    yield Text()
    yield changes_table(report)
    for change in report.changes:
        if change.unusable:
            text = f"{change.suite}/{change.name} is UNUSABLE and decides nothing: {change.unusable}"
            yield Text(one_line(text), style="bold red")
    yield Text(
        "difference: last stage − base model over the same items, 95 % interval in brackets; "
        "no evidence: the interval includes 0; ↓ lower is better",
        style="dim",
    )
    if any(change.needed for change in report.changes):
        yield Text(
            "~n: items needed for a verdict with 80 % probability if the true change is as large as the estimate",
            style="dim",
        )
    if report.slices:
        yield Text()
        yield slices_table(report)
    yield from _changed_answers(report)
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
    """Build one row per score, grouped by suite: before → after, the difference with its interval, the verdict."""
    table = new_table("suite / metric")
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


def slices_table(report: Report) -> Table:
    """Build one row per slice: before → after, the difference with its interval, the verdict."""
    table = new_table("slice")
    table.add_column("before → after", justify="right", no_wrap=True)
    table.add_column("difference [95 % interval]", justify="right", no_wrap=True)
    table.add_column("verdict", no_wrap=True)
    for (suite, column), group in groupby(report.slices, key=lambda each: (each.suite, each.column)):
        slices = list(group)
        table.add_row(Text(one_line(f"{suite} by {column}"), style="bold"), Text(slices[0].score, style="dim"))
        for each in slices:
            label = f" {one_line(each.value)}, n = {format_size(each.n, each.difference.groups)}"
            table.add_row(Text(label), format_before_after(each), format_difference(each), format_verdict(each))
    return table


def stages_tables(report: Report, width: int) -> Iterator[Table]:
    """Build tables with the value of every score after every stage, each with as many stages as `width` holds."""
    name_width = max(len(change.name) for change in report.changes) + 4
    columns = max((width - name_width) // STAGE_COLUMN_WIDTH, 1)
    for start in range(0, len(report.stages), columns):
        stages = report.stages[start : start + columns]
        table = new_table("after stage")
        for name in stages:
            table.add_column(Text(one_line(name, STAGE_COLUMN_WIDTH - 2)), justify="right", no_wrap=True)
        for suite, group in groupby(report.changes, key=lambda change: change.suite):
            table.add_row(Text(printable(suite), style="bold"))
            for change in group:
                table.add_row(_score_label(change), *_stage_values(change, start, len(stages)))
        yield table


def forgetting_table(report: Report) -> Iterator[RenderableType]:
    """Build the summaries over all tasks: one row per summary, with its interval, for each score."""
    matrices = [matrix for matrix in report.matrices if any(name in matrix.summaries for name in TERMINAL_SUMMARIES)]
    if not matrices:
        return
    yield Text()
    table = new_table("over all tasks / metric")
    table.add_column("value [95 % interval]", justify="right", no_wrap=True)
    table.add_column("meaning", overflow="fold", style="dim")
    for matrix in matrices:
        if table.row_count:
            table.add_row()
        arrow = "" if matrix.higher_is_better else " ↓"
        table.add_row(Text(f"{one_line(matrix.called)}{arrow}", style="bold"), "", "")
        for name, estimate in matrix.summaries.items():
            if name in TERMINAL_SUMMARIES:
                table.add_row(Text(f" {name}"), interval_text(estimate), SUMMARY_DESCRIPTIONS[name])
    yield table
    yield Text(
        "metrics where lower is better (↓) enter with the sign flipped: forgetting above 0 is a loss", style="dim"
    )


def scores_table(evaluations: Sequence[Evaluation]) -> RenderableType:
    """Build every score with its interval and its counts, suite by suite and stage by stage."""
    table = new_table("suite / metric")
    table.add_column("stage", justify="right", no_wrap=True)
    table.add_column("score [95 % interval]", justify="right", no_wrap=True)
    table.add_column("n", justify="right", no_wrap=True)
    table.add_column("counts", overflow="fold", style="yellow")
    for evaluation in evaluations:
        if table.row_count:
            table.add_row()
        table.add_row(Text(one_line(evaluation.suite), style="bold"))
        for score in evaluation.scores:
            arrow = " ↓" if score.higher_is_better is False else ""
            counts = ", ".join(f"{count:,} {name.replace('_', ' ')}" for name, count in score.counts.items() if count)
            value, bounds = format_interval(score, digits=4, sign=False)
            table.add_row(
                Text(f" {one_line(score.name)}{arrow}"),
                str(score.stage),
                Text.assemble(value, (f" {bounds}", "dim")),
                f"{score.n:,}",
                counts,
            )
    return table


def format_gate_results(report: Report) -> Iterator[RenderableType]:
    """Format every condition of the gate with its result."""
    yield Text("gate", style="bold")
    for result in report.gate:
        yield Text(f" {one_line(result.format_line())}", style=GATE_STYLES[result.outcome])


def format_examples(report: Report) -> Iterator[RenderableType]:
    """Format the sampled questions, each with the reference and the answers before and after training."""
    suite = one_line(report.examples[0].suite)
    count = len(report.examples)
    yield Text.assemble(
        (f"{count} held-out {'answer' if count == 1 else 'answers'} of {suite}", "bold"),
        (", sampled with the run's seed, independent of scores", "dim"),
    )
    grid = Table(box=None, show_header=False, pad_edge=False, padding=(0, 1))
    grid.add_column(no_wrap=True, style="dim")
    grid.add_column(overflow="fold")
    for index, example in enumerate(report.examples):
        if index:
            grid.add_row()
        grid.add_row("question", shorten_answer(example.prompt, "bold"))
        grid.add_row("reference", shorten_answer(example.reference, "cyan"))
        grid.add_row("before", mark_cut(shorten_answer(example.before, ""), example.before_cut))
        grid.add_row("after", mark_cut(shorten_answer(example.after, "green"), example.after_cut))
    yield grid


def _changed_answers(report: Report) -> Iterator[RenderableType]:
    """Format how many items of each 0/1 score flipped, and the words of the domain in general answers."""
    for flips in report.flips:
        if flips.lost is not None and (flips.worse or flips.better):
            yield Text(one_line(f"{flips.suite}/{flips.score}  {'; '.join(describe_flips(flips))}"))
    if report.leaked_words:
        words = ", ".join(f"{one_line(leaked.word)} ({leaked.count})" for leaked in report.leaked_words)
        yield Text(f"domain words in general answers, and not in the base model's: {words}", style="yellow")


def format_before_after(change: ScoreChange | SliceChange) -> Text:
    """Format both values with the same number of decimals."""
    places = decimal_places([change.before.value, change.after.value])
    return Text(f"{format_number(change.before.value, places)} → {format_number(change.after.value, places)}")


def format_difference(change: ScoreChange | SliceChange) -> Text:
    """Format the difference with its 95 % interval, in the style of its verdict."""
    return interval_text(change.difference, VERDICT_STYLES[change.verdict])


def format_verdict(change: ScoreChange | SliceChange) -> Text:
    """Format the verdict; an arrow shows whether the number went up or down."""
    if change.verdict in ("no evidence", "too few items", "unusable"):
        needed = f" (~n {change.needed:,})" if change.needed else ""
        return Text.assemble((change.verdict, VERDICT_STYLES[change.verdict]), (needed, "dim"))
    arrow = "▲" if change.difference.value > 0 else "▼"
    return Text(f"{arrow} {change.verdict}", style=VERDICT_STYLES[change.verdict])


def _suite_notes(report: Report, change: ScoreChange) -> tuple[Text, Text]:
    """Format role and size of a suite, and how many answers after training are not complete."""
    incomplete = format_incomplete_answers(report.answers.get(change.suite, {}).get("after", {}))
    role_and_size = Text(f"{change.role}, n = {format_size(change.n, change.difference.groups)}", style="dim")
    return role_and_size, Text(f"after: {incomplete}" if incomplete else "", style="yellow")


def _score_label(change: ScoreChange) -> Text:
    return Text(f" {one_line(change.name)}{'' if change.higher_is_better else ' ↓'}")


def _stage_values(change: ScoreChange, start: int, count: int) -> Iterator[str]:
    known = [estimate.value for estimate in change.after_stages if estimate is not None]
    for estimate in change.after_stages[start : start + count]:
        yield format_number(None if estimate is None else estimate.value, decimal_places(known))


def _next_steps(report: Report) -> Iterator[RenderableType]:
    """Format where the files are, and the commands that a user can run next."""
    run_info = report.run_info
    if "folder" in run_info:
        took = f"  ({time})" if (time := format_run_time(run_info)) else ""
        yield _command_line("run folder", str(run_info["folder"]), took)
        yield _command_line("report", f"{run_info['folder']}/report.html")
        folder = Path(run_info["folder"])
        if (folder / "model").is_dir():
            yield _command_line("talk to it", harness_command("chat", folder, "--compare"))
            yield _command_line("export", harness_command("export", folder, "--to", "merged"))
    if phases := phases_of_run_info(run_info):
        yield Text.assemble((f"{'time':<12}{format_phases(phases)}", "dim"))
    if memory := format_memory(run_info):
        yield Text.assemble((f"{'memory':<12}{memory}", "dim"))
    if run_info.get("uri"):
        uri = str(run_info["uri"])
        if "id" in run_info:
            # `compare` finds a store other than the default one only by its --uri.
            store_option = ["--uri", uri] if uri != redact_text(tracking_uri(None)) else []
            run = [str(run_info["id"]), *store_option]
            if Path(run_info.get("folder", "")).parent.name == "arms":
                run = [str(run_info["folder"])]  # arms of other experiments may have the same name
            yield _command_line("compare", harness_command("compare", *run))
        view = run_info.get("view")
        if not re.match("https?://", uri):
            yield _command_line("MLflow", f"mlflow ui --backend-store-uri {shlex.quote(uri)}")
            if view:
                yield _command_line("", str(view))
        else:
            yield _command_line("MLflow", str(view or uri))


def _command_line(label: str, command: str, note: str = "") -> Text:
    # Never wrapped: a command that is split over two lines cannot be copied.
    line = Text.assemble((f"{label:<12}", "dim"), (printable(command), "bold"), (note, "dim"))
    line.no_wrap, line.overflow = True, "ignore"
    return line
