"""How an experiment's arms look on a terminal, at any width, and as plain text."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby

from rich import box
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.table import Table
from rich.text import Text

from harness.report.arm_comparison import ArmComparison, ArmScore
from harness.report.recommendation import ArmPoint
from harness.statistics.intervals import Estimate
from harness.terminal.report_table import VERDICT_STYLES
from harness.utils.formatting import (
    MISSING,
    decimal_places,
    encodable_segments,
    format_number,
    format_p_value,
    one_line,
)


@dataclass(frozen=True)
class ArmsTable:
    """The whole comparison of the arms as one renderable."""

    experiment: ArmComparison

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield from encodable_segments(Group(*self._parts()), console, options)

    def _parts(self) -> Iterator[RenderableType]:
        one = self.experiment
        yield arm_points_table(one)
        yield Text(
            "against the base model, 95 % intervals; ● no other arm gains as much and forgets less; recovered: share "
            f"of the forgetting of {one.baseline!r} that was prevented, where that exceeds two standard errors",
            style="dim",
        )
        yield Text()
        yield arm_scores_table(one)
        yield Text(
            f"difference to {one.baseline!r} over the same items; verdict at 5 % after Holm's correction for "
            f"{sum(score.p is not None for score in one.scores)} comparisons; ↓ lower is better",
            style="dim",
        )
        if one.intransigence:
            yield Text()
            yield intransigence_table(one)
            yield Text(
                f"what {one.joint!r}, trained on all tasks together, has at its end, less what the stages reached, in "
                "the mean over their tasks; positive: the stages learned less, whichever direction is the better one",
                style="dim",
            )
        for note in one.notes:
            yield Text(one_line(note, 1000), style="yellow")
        for arm, why in one.missing.items():
            yield Text(f"no result of {one_line(arm)}: {one_line(why)}", style="yellow")
        yield Text()
        yield Text(one_line(one.recommendation_text, 1000), style="bold")


def arm_points_table(experiment: ArmComparison) -> Table:
    """One row an arm: what it gained, what it forgot, what it recovered."""
    table = _new_table("", "arm")
    gain, lost = one_line(experiment.gain), one_line(experiment.forgetting)
    table.add_column(f"gain in {gain}", justify="right")
    table.add_column(f"forgotten in {lost}", justify="right")
    table.add_column("recovered", justify="right", no_wrap=True)
    for point in experiment.points:
        name = Text(one_line(point.arm), style="bold" if point.arm == experiment.baseline else "")
        table.add_row(
            "●" if point.efficient else "",
            name,
            _format_interval(point.gain),
            _format_interval(point.forgotten),
            _format_recovered(point),
        )
    return table


def arm_scores_table(experiment: ArmComparison) -> Table:
    """One row an arm within each score, the scores suite by suite."""
    table = _new_table("suite / score / arm")
    table.add_column("after", justify="right", no_wrap=True)
    table.add_column("difference [95 % interval]", justify="right", no_wrap=True)
    table.add_column("p", justify="right", no_wrap=True)
    table.add_column("verdict", no_wrap=True)
    ordered = sorted(experiment.scores, key=lambda one: _sort_key(experiment, one))
    for (suite, score), group in groupby(ordered, key=lambda one: (one.suite, one.score)):
        rows = list(group)
        if table.row_count:
            table.add_row()
        arrow = "" if rows[0].higher_is_better else " ↓"
        title = Text(f"{one_line(suite)}/{one_line(score)}{arrow}", style="bold")
        table.add_row(title, "", Text(f"n = {rows[0].n:,}", style="dim"), "", "")
        places = decimal_places([one.after.value for one in rows])
        for one in rows:
            table.add_row(
                Text(f" {one_line(one.arm)}"),
                format_number(one.after.value, places),
                Text("baseline", style="dim") if one.against is None else _format_interval(one.against),
                format_p_value(one.p_holm),
                "" if one.verdict is None else Text(one.verdict, style=VERDICT_STYLES[one.verdict]),
            )
    return table


def intransigence_table(experiment: ArmComparison) -> Table:
    """One row an arm and score: by how much the joint arm learned more."""
    table = _new_table("score / arm")
    table.add_column("intransigence [95 % interval]", justify="right", no_wrap=True)
    table.add_column("tasks")
    for score in dict.fromkeys(one.score for one in experiment.intransigence):
        table.add_row(Text(one_line(score), style="bold"), "", "")
        for one in experiment.intransigence:
            if one.score == score:
                table.add_row(
                    Text(f" {one_line(one.arm)}"), _format_interval(one.value), one_line(", ".join(one.suites))
                )
    return table


def _sort_key(experiment: ArmComparison, arm_score: ArmScore) -> tuple[int, int]:
    keys = list(dict.fromkeys((score.suite, score.score) for score in experiment.scores))
    return keys.index((arm_score.suite, arm_score.score)), list(experiment.arms).index(arm_score.arm)


def _format_interval(estimate: Estimate) -> Text:
    bounds = (estimate.value, estimate.low, estimate.high)
    places = decimal_places(bounds, digits=3)
    value, low, high = (format_number(one, places, sign=True) for one in bounds)
    return Text.assemble(value, (f" [{low}, {high}]", "dim"))


def _format_recovered(point: ArmPoint) -> Text:
    return Text(MISSING if point.recovered is None else f"{point.recovered:.0%}")


def _new_table(*columns: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0), show_edge=False)
    for name in columns:
        table.add_column(name, overflow="fold")
    return table
