"""The plan of a run as tables for a terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text


def format_plan(summary: Mapping[str, Any]) -> RenderableType:
    """Build the plan: one table per stage, the suites, the memory, and what is not known.

    Args:
        summary: Result of `harness.runner.plan_summary.summarize_plan`.
    """
    parts: list[RenderableType] = [
        Text.assemble((summary["name"], "bold"), f": {summary['model']['path']}, template {summary['template']}"),
        Text(f"mitigations: {', '.join(summary['mitigations']) or 'none'}"),
    ]
    for stage in summary["stages"]:
        parts += [Text(""), _stage_table(stage)]
    parts += [Text(""), _suites_table(summary["suites"]), Text("")]
    if summary["memory"]:
        parts.append(Text(_format_memory(summary["memory"])))
    parts += [Text(f"not known: {text}", style="yellow") for text in summary["unknown"]]
    return Group(*parts)


def _suites_table(suites: Sequence[Mapping[str, Any]]) -> Table:
    table = Table(title="evaluated before and after each stage", title_justify="left", box=None, pad_edge=False)
    for column in ("suite", "role", "rows", "metrics"):
        table.add_column(column, justify="right" if column == "rows" else "left")
    for suite in suites:
        table.add_row(suite["name"], suite["role"], str(suite.get("rows", "?")), ", ".join(suite["metrics"]))
    return table


def _format_memory(memory: Mapping[str, Any]) -> str:
    return (
        f"memory: {memory['bytes'] / 2**30:.2f} GiB on {memory['device']} for weights, gradients and optimizer "
        f"({memory['weights']:,} weights, {memory['trained']:,} or {memory['trained'] / memory['weights']:.1%} "
        "trained); activations and the state of mitigations come in addition"
    )


def _stage_table(stage: Mapping[str, Any]) -> Table:
    train = stage["train"]
    steps = stage.get("steps", train["steps"])
    settings = [
        *([f"{steps:,} steps"] if steps is not None else []),
        *([f"{train['epochs']:g} epoch(s)"] if train["steps"] is None else []),
        f"batch {train['batch_size']} × {train['accumulation']}",
        f"learning rate {train['learning_rate']:g} ({train['scheduler']}, warm-up {train['warmup_ratio']:g})",
        *([f"packed to {train['max_length']}"] if train["packing"] else []),
        *([f"{stage['efficiency']:.1%} of the positions of padded batches hold text"] if "efficiency" in stage else []),
    ]
    title = f"stage {stage['name']}: {', '.join(settings)}"
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    for column in ("source", "role", "rows", "tokens", "trained tokens", "requested share", "realized share"):
        table.add_column(column, justify="left" if column in ("source", "role") else "right")
    for source in stage["parts"]:
        requested = _format_requested_share(source, stage["shares"])
        counts = [f"{source[key]:,}" if key in source else "?" for key in ("rows", "tokens", "loss_tokens")]
        realized = f"{source['realised']:.2%}" if "realised" in source else "?"
        table.add_row(source["source"], source["role"], *counts, requested, realized)
    return table


def _format_requested_share(source_summary: Mapping[str, Any], requested_shares: Sequence[Mapping[str, Any]]) -> str:
    source = source_summary["source"]
    for share in requested_shares:
        if source in share["sources"]:
            others = " and ".join(name for name in share["sources"] if name != source)
            unit = share["unit"].replace("loss_tokens", "trained tokens")
            return f"{share['amount']:.1%} of {unit}{f', with {others}' if others else ''}"
    return "all rows" if source_summary["limit"] is None else f"all of {source_summary['limit']:,} rows at most"
