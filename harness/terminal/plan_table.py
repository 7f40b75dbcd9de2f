"""The plan as tables for a terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text


def format_plan(made: Mapping[str, Any]) -> RenderableType:
    """The outline for a terminal."""
    shown: list[RenderableType] = [
        Text.assemble((made["name"], "bold"), f": {made['model']['path']}, template {made['template']}"),
        Text(f"mitigations: {', '.join(made['mitigations']) or 'none'}"),
    ]
    for stage in made["stages"]:
        shown += [Text(""), _stage_table(stage)]
    suites = Table(title="evaluated before and after each stage", title_justify="left", box=None, pad_edge=False)
    for column in ("suite", "role", "rows", "metrics"):
        suites.add_column(column, justify="right" if column == "rows" else "left")
    for suite in made["suites"]:
        suites.add_row(suite["name"], suite["role"], str(suite.get("rows", "?")), ", ".join(suite["metrics"]))
    shown += [Text(""), suites, Text("")]
    if made["memory"]:
        memory = made["memory"]
        trained = memory["trained"] / memory["weights"]
        shown.append(
            Text(
                f"memory: {memory['bytes'] / 2**30:.2f} GiB on {memory['device']} for weights, gradients and optimizer "
                f"({memory['weights']:,} weights, {memory['trained']:,} or {trained:.1%} trained); "
                "activations, and what mitigations remember, come on top"
            )
        )
    shown += [Text(f"not known: {text}", style="yellow") for text in made["unknown"]]
    return Group(*shown)


def _stage_table(stage: Mapping[str, Any]) -> Table:
    train = stage["train"]
    steps = stage.get("steps", train["steps"])
    facts = [f"{steps:,} steps"] if steps is not None else []
    facts += [
        *([f"{train['epochs']:g} epoch(s)"] if train["steps"] is None else []),
        f"batch {train['batch_size']} × {train['accumulation']}",
        f"learning rate {train['learning_rate']:g} ({train['scheduler']}, warm-up {train['warmup_ratio']:g})",
        *([f"packed to {train['max_length']}"] if train["packing"] else []),
        *([f"{stage['efficiency']:.1%} of slots are real tokens"] if "efficiency" in stage else []),
    ]
    table = Table(title=f"stage {stage['name']}: {', '.join(facts)}", title_justify="left", box=None, pad_edge=False)
    for column in ("source", "role", "rows", "tokens", "trained tokens", "share asked", "share realised"):
        table.add_column(column, justify="left" if column in ("source", "role") else "right")
    for part in stage["parts"]:
        asked = _format_requested_share(part, stage["shares"])
        numbers = [f"{part[key]:,}" if key in part else "?" for key in ("rows", "tokens", "loss_tokens")]
        realised = f"{part['realised']:.2%}" if "realised" in part else "?"
        table.add_row(part["source"], part["role"], *numbers, asked, realised)
    return table


def _format_requested_share(source_summary: Mapping[str, Any], requested_shares: Sequence[Mapping[str, Any]]) -> str:
    source = source_summary["source"]
    for share in requested_shares:
        if source in share["sources"]:
            others = [name for name in share["sources"] if name != source]
            beside = f", with {' and '.join(others)}" if others else ""
            return f"{share['amount']:.1%} of {share['unit'].replace('loss_tokens', 'trained tokens')}{beside}"
    return "all rows" if source_summary["limit"] is None else f"all of {source_summary['limit']:,} rows at most"
