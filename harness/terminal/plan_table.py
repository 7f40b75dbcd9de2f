"""The plan of a run as tables for a terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from harness.utils.formatting import format_efficiency


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
    if summary.get("held_out"):
        parts += [_held_out_table(summary["held_out"]), Text("")]
    if summary["memory"]:
        parts.append(Text(_format_memory(summary["memory"])))
        parts += [Text(line) for line in _device_lines(summary["memory"])]
        parts += [Text(line) for line in _time_lines(summary["memory"])]
    if summary["recommendation"]:
        parts.append(Text(f"recommended: {summary['recommendation']}", style="cyan"))
    parts += [Text(f"not known: {text}", style="yellow") for text in summary["unknown"]]
    return Group(*parts)


def _suites_table(suites: Sequence[Mapping[str, Any]]) -> Table:
    table = Table(title="evaluated before and after each stage", title_justify="left", box=None, pad_edge=False)
    for column in ("suite", "role", "rows", "metrics"):
        table.add_column(column, justify="right" if column == "rows" else "left")
    for suite in suites:
        table.add_row(suite["name"], suite["role"], str(suite.get("rows", "?")), ", ".join(suite["metrics"]))
    return table


def _held_out_table(rules: Mapping[str, Mapping[str, Any]]) -> Table:
    table = Table(title="held out of training", title_justify="left", box=None, pad_edge=False)
    for column in ("source", "by", "rows", "groups", "rows for training", "groups for training"):
        table.add_column(column, justify="left" if column in ("source", "by") else "right")
    for name, rule in rules.items():
        keys = ("held_out_rows", "held_out_groups", "training_rows", "training_groups")
        table.add_row(name, rule["by"], *("" if rule[key] is None else f"{rule[key]:,}" for key in keys))
    return table


def _format_memory(memory: Mapping[str, Any]) -> str:
    activations = ""
    if memory["activations"]:
        activations = (
            f"about {memory['activations'] / 2**30:.2f} GiB for activations of the largest batch "
            f"({memory['batch_tokens']:,} tokens), {memory['checkpointed'] / 2**30:.2f} GiB with "
            "train.gradient_checkpointing; "
        )
    return (
        f"memory: {memory['bytes'] / 2**30:.2f} GiB on {memory['device']} for weights, gradients and optimizer "
        f"({memory['weights']:,} weights, {memory['trained']:,} or {memory['trained'] / memory['weights']:.1%} "
        f"trained); {activations}{'' if activations else 'activations and '}the state of mitigations "
        f"{'comes' if activations else 'come'} in addition"
    )


def _device_lines(memory: Mapping[str, Any]) -> list[str]:
    """Return the peak by kind; for a named device also whether it fits, how long it takes, and what would fit."""
    kinds = memory.get("kinds")
    if not kinds:
        unknown = "its activations are not known, so neither is whether it fits into"
        size = memory.get("available")
        return [] if size is None else [f"{unknown} the {size / 2**30:.1f} GiB of {memory['device']}"]
    by_kind = ", ".join(
        f"{kind} {size / 2**30:.2f}"
        for kind, size in kinds.items()
        if kind not in ("peak", "main_memory") and size >= 2**30 / 200
    )
    lines = [f"peak of a step: about {kinds['peak'] / 2**30:.2f} GiB ({by_kind})"]
    if kinds.get("main_memory"):
        lines.append(f"in main memory: about {kinds['main_memory'] / 2**30:.2f} GiB, of all processes together")
    if "available" not in memory:
        return lines
    verdict = "fits into" if memory["fits"] else "does not fit into"
    device = memory["device"] if memory["processes"] == 1 else f"each of {memory['processes']} {memory['device']}"
    lines[0] += f", which {verdict} the {memory['available'] / 2**30:.1f} GiB of {device}"
    lines += [
        f"stage '{name}' there: {', '.join(f'{key} {value}' for key, value in settings.items())}"
        for name, settings in memory["settings"].items()
    ]
    lines += [f"it would fit with {' '.join(f'--set {key}' for key in keys)}" for keys in memory["remedies"]]
    if not memory["fits"] and not memory["remedies"]:
        lines.append("it fits with no smaller batch, checkpointing, LoRA or 4 bits: use a smaller model or more memory")
    return lines + ([memory["note"]] if memory["note"] else [])


def _time_lines(memory: Mapping[str, Any]) -> list[str]:
    """Return how long the training takes, if that is known."""
    if memory["hours"] is None:
        return []
    where = "at 35 % of the device's peak" if "available" in memory else "on this CPU as busy as it is now"
    return [f"training: {_format_hours(memory['hours'])} {where}, without evaluation"]


def _format_hours(hours: float) -> str:
    if hours >= 1:
        return f"about {hours:.1f} h"
    if hours >= 1 / 60:
        return f"about {hours * 60:.0f} min"
    return f"about {hours * 3600:.0f} s" if hours >= 1 / 3600 else "less than a second"


def _stage_table(stage: Mapping[str, Any]) -> Table:
    train = stage["train"]
    steps = stage.get("steps", train["steps"])
    settings = [
        *([f"{steps:,} steps"] if steps is not None else []),
        *([f"{train['epochs']:g} epoch(s)"] if train["steps"] is None else []),
        f"batch {train['batch_size']} × {train['accumulation']}",
        f"{next(iter(train['optimizer']))}, learning rate {train['learning_rate']:g} "
        f"({next(iter(train['scheduler']))}, warm-up {_warmup(train)})",
        *([f"packed to {train['max_length']}"] if train["packing"] else []),
        *([f"sharded by {train['sharding']}"] if train.get("sharding") else []),
        *(["layer inputs in main memory"] if train.get("offload_activations") else []),
        *(["shards in main memory"] if train.get("offload_shards") else []),
        *([format_efficiency(stage["efficiency"])] if "efficiency" in stage else []),
    ]
    title = f"stage {stage['name']}: {', '.join(settings)}"
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    for column in ("source", "role", "rows", "tokens", "trained tokens", "requested share", "realized share"):
        table.add_column(column, justify="left" if column in ("source", "role") else "right")
    for source in stage["parts"]:
        requested = _format_requested_share(source, stage["shares"])
        counts = [f"{source[key]:,}" if key in source else "?" for key in ("rows", "tokens", "loss_tokens")]
        realized = f"{source['realised']:.2%}" if "realised" in source else "?"
        role = f"{source['role']}, not yet written" if "written_by" in source else source["role"]
        table.add_row(source["source"], role, *counts, requested, realized)
    return table


def _warmup(train: Mapping[str, Any]) -> str:
    steps = train.get("warmup_steps")
    return f"{train['warmup_ratio']:g}" if steps is None else f"{steps:,} steps"


def _format_requested_share(source_summary: Mapping[str, Any], requested_shares: Sequence[Mapping[str, Any]]) -> str:
    source = source_summary["source"]
    for share in requested_shares:
        if source in share["sources"]:
            others = " and ".join(name for name in share["sources"] if name != source)
            unit = share["unit"].replace("loss_tokens", "trained tokens")
            return f"{share['amount']:.1%} of {unit}{f', with {others}' if others else ''}"
    return "all rows" if source_summary["limit"] is None else f"all of {source_summary['limit']:,} rows at most"
