"""The comparison of an experiment's arms for a terminal of any width: one table, and the recommendation.

Every score of every arm is on the experiment's page and in `arms.json`.
"""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from harness.report.arm_comparison import ArmComparison
from harness.report.best_control import BestControl
from harness.report.equal_gain import EqualGain
from harness.report.recommendation import ArmPoint
from harness.terminal.tables import GATE_STYLES, VERDICT_STYLES, TerminalPage, interval_text, new_table
from harness.utils.formatting import MISSING, one_line


def format_arms(experiment: ArmComparison) -> RenderableType:
    """Build the comparison of the arms: one table, notes, gate and recommendation."""
    return TerminalPage(lambda width: _arms_parts(experiment))


def _arms_parts(experiment: ArmComparison) -> Iterator[RenderableType]:
    yield arm_points_table(experiment)
    coverage = "over seeds and items" if any(len(point.seeds) > 1 for point in experiment.points) else "over the items"
    legend = (
        f"relative to the base model, 95 % intervals {coverage}; ● no other arm gains as much and forgets less; "
        f"recovered: prevented fraction of the forgetting of {experiment.baseline!r}"
    )
    if experiment.best_control:
        legend += (
            "; against the best control: forgetting minus the smallest of the controls, for all these arms together"
        )
    yield Text(legend, style="dim")
    for note in experiment.notes:
        yield Text(one_line(note, 1000), style="yellow")
    for arm, reason in experiment.missing.items():
        yield Text(f"no result of {one_line(arm)}: {one_line(reason)}", style="yellow")
    yield Text()
    yield Text(one_line(experiment.recommendation_text, 1000), style="bold")
    if experiment.equal_gain is not None:
        yield from _equal_gain_parts(experiment.equal_gain)
    if experiment.gate is not None:
        yield Text(one_line(experiment.gate.text), style=GATE_STYLES[experiment.gate.outcome])
        for result in experiment.gate.results:
            yield Text(f" {one_line(result.format_line())}", style=GATE_STYLES[result.outcome])
    yield Text(f"every score of every arm: {one_line(experiment.folder, 1000)}/report.html", style="dim")


def _equal_gain_parts(equal_gain: EqualGain) -> Iterator[RenderableType]:
    yield Text(one_line(equal_gain.text, 1000))
    for point in equal_gain.points:
        line = Text.assemble("  ", one_line(point.arm), " ", interval_text(point.forgotten))
        if point.against is not None and point.verdict is not None:
            line.append_text(Text.assemble(", against the baseline ", interval_text(point.against), " "))
            line.append(point.verdict, VERDICT_STYLES[point.verdict])
        yield line
    if equal_gain.points:
        for arm, reason in equal_gain.missing.items():
            yield Text(f"  {one_line(arm)} is missing there: {one_line(reason)}", style="yellow")


def arm_points_table(experiment: ArmComparison) -> Table:
    """Build one row per arm: its gain, its forgetting, and the fraction of forgetting that it recovered."""
    by_arm = {entry.arm: entry for entry in experiment.best_control}
    table = new_table("", "arm")
    has_seeds = any(len(point.seeds) > 1 for point in experiment.points)
    if has_seeds:
        table.add_column("seeds", justify="right", no_wrap=True)
    table.add_column(Text(f"gain in {one_line(experiment.gain)}"), justify="right")
    table.add_column(Text(f"forgotten in {one_line(experiment.forgetting)}"), justify="right")
    table.add_column("recovered", justify="right", no_wrap=True)
    if by_arm:
        table.add_column("against the best control", justify="right")
    for point in experiment.points:
        table.add_row(
            "●" if point.efficient else "",
            Text(one_line(point.arm), style="bold" if point.arm in experiment.controls else ""),
            *([str(max(1, len(point.seeds)))] if has_seeds else []),
            interval_text(point.gain),
            interval_text(point.forgotten),
            _format_recovered(point),
            *([_format_control(by_arm.get(point.arm), point.arm in experiment.controls)] if by_arm else []),
        )
    return table


def _format_control(entry: BestControl | None, is_control: bool) -> Text:
    if entry is None:
        return Text("control" if is_control else MISSING, style="dim")
    return Text.assemble(interval_text(entry.forgotten), " ", (entry.verdict, VERDICT_STYLES[entry.verdict]))


def _format_recovered(point: ArmPoint) -> Text:
    return Text(MISSING if point.recovered is None else f"{point.recovered:.0%}")
