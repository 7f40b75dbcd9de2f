"""The comparison of an experiment's arms as tables for a terminal of any width, and as plain text."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from harness.report.arm_comparison import ArmComparison, ArmScore
from harness.report.recommendation import ArmPoint
from harness.terminal.tables import VERDICT_STYLES, TerminalPage, interval_text, new_table
from harness.utils.formatting import MISSING, decimal_places, format_number, format_p_value, format_size, one_line


def format_arms(experiment: ArmComparison) -> RenderableType:
    """Build the complete comparison of the arms: points, scores, intransigence, notes and recommendation."""
    return TerminalPage(lambda width: _arms_parts(experiment))


def _arms_parts(experiment: ArmComparison) -> Iterator[RenderableType]:
    yield arm_points_table(experiment)
    yield Text(
        "relative to the base model, 95 % intervals; ● no other arm gains as much and forgets less; recovered: "
        f"prevented fraction of the forgetting of {experiment.baseline!r}, where that forgetting exceeds two standard "
        "errors",
        style="dim",
    )
    yield Text()
    yield arm_scores_table(experiment)
    yield Text(
        f"difference to {experiment.baseline!r} over the same items; verdict at 5 % after Holm's correction for "
        f"{sum(score.p is not None for score in experiment.scores)} comparisons; ↓ lower is better",
        style="dim",
    )
    if experiment.intransigence:
        yield Text()
        yield intransigence_table(experiment)
        yield Text(
            f"final value of {experiment.joint!r}, trained on all tasks together, minus the arm's value after each "
            "task's stage, mean over tasks; positive: the arm learned less, whether higher or lower is better",
            style="dim",
        )
    for note in experiment.notes:
        yield Text(one_line(note, 1000), style="yellow")
    for arm, reason in experiment.missing.items():
        yield Text(f"no result of {one_line(arm)}: {one_line(reason)}", style="yellow")
    yield Text()
    yield Text(one_line(experiment.recommendation_text, 1000), style="bold")


def arm_points_table(experiment: ArmComparison) -> Table:
    """Build one row per arm: its gain, its forgetting, and the fraction of forgetting that it recovered."""
    table = new_table("", "arm")
    table.add_column(Text(f"gain in {one_line(experiment.gain)}"), justify="right")
    table.add_column(Text(f"forgotten in {one_line(experiment.forgetting)}"), justify="right")
    table.add_column("recovered", justify="right", no_wrap=True)
    for point in experiment.points:
        table.add_row(
            "●" if point.efficient else "",
            Text(one_line(point.arm), style="bold" if point.arm == experiment.baseline else ""),
            interval_text(point.gain),
            interval_text(point.forgotten),
            _format_recovered(point),
        )
    return table


def arm_scores_table(experiment: ArmComparison) -> Table:
    """Build one row per arm within each score, the scores suite by suite."""
    table = new_table("suite / score / arm")
    table.add_column("after", justify="right", no_wrap=True)
    table.add_column("difference [95 % interval]", justify="right", no_wrap=True)
    table.add_column("p", justify="right", no_wrap=True)
    table.add_column("verdict", no_wrap=True)
    ordered = sorted(experiment.scores, key=lambda score: _sort_key(experiment, score))
    for (suite, name), group in groupby(ordered, key=lambda score: (score.suite, score.score)):
        scores = list(group)
        if table.row_count:
            table.add_row()
        arrow = "" if scores[0].higher_is_better else " ↓"
        title = Text(f"{one_line(suite)}/{one_line(name)}{arrow}", style="bold")
        table.add_row(title, "", Text(f"n = {format_size(scores[0].n, scores[0].change.groups)}", style="dim"), "", "")
        places = decimal_places([score.after.value for score in scores])
        for score in scores:
            table.add_row(
                Text(f" {one_line(score.arm)}"),
                format_number(score.after.value, places),
                Text("baseline", style="dim") if score.against is None else interval_text(score.against),
                format_p_value(score.p_holm),
                "" if score.verdict is None else Text(score.verdict, style=VERDICT_STYLES[score.verdict]),
            )
    return table


def intransigence_table(experiment: ArmComparison) -> Table:
    """Build one row per arm and score: by how much more the joint arm learned."""
    table = new_table("score / arm")
    table.add_column("intransigence [95 % interval]", justify="right", no_wrap=True)
    table.add_column("tasks")
    for score in dict.fromkeys(entry.score for entry in experiment.intransigence):
        table.add_row(Text(one_line(score), style="bold"), "", "")
        for entry in experiment.intransigence:
            if entry.score == score:
                tasks = one_line(", ".join(entry.suites))
                table.add_row(Text(f" {one_line(entry.arm)}"), interval_text(entry.value), tasks)
    return table


def _sort_key(experiment: ArmComparison, arm_score: ArmScore) -> tuple[int, int]:
    keys = list(dict.fromkeys((score.suite, score.score) for score in experiment.scores))
    return keys.index((arm_score.suite, arm_score.score)), list(experiment.arms).index(arm_score.arm)


def _format_recovered(point: ArmPoint) -> Text:
    return Text(MISSING if point.recovered is None else f"{point.recovered:.0%}")
