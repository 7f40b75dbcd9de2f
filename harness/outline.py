"""What would run: the plan in numbers, and rows as they would be trained. Loads no weights.

Where the model's tokenizer cannot be had, rows are counted and the reason is given in the place of tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from harness import data, plan, run, shares
from harness.contracts import Part, Plan, Stage, StageData
from harness.errors import HarnessError
from harness.legible import one_line
from harness.registry import Registry
from harness.spec import Spec

NOTHING = {"rows": 0, "tokens": 0, "loss_tokens": 0}

TRAINED_BYTES = 16
"""A trained weight is four float32 numbers: itself, its gradient, and the two that AdamW keeps."""


def make(spec: Spec, registry: Registry) -> dict[str, Any]:
    """The outline as plain data: `stages`, `suites`, `sources`, `memory`, `unknown` (why numbers are missing)."""
    planned = plan.make(spec, registry)
    try:
        ready = run.prepare(spec, registry)
    except run.ModelUnreachable as error:
        return _without_tokens(planned, registry, str(error))
    return {
        "name": planned.name,
        "model": {"path": planned.model["path"], "digest": ready.location.digest},
        "template": planned.template[0],
        "mitigations": list(planned.mitigations),
        "sources": {name: dict(counts) for name, counts in ready.data.counts.items()},
        "stages": [_stage(one) for one in ready.data.stages],
        "suites": [
            {"name": s.name, "role": s.role, "rows": len(ready.data.suites[s.name]), "metrics": list(s.metrics)}
            for s in planned.suites
        ],
        "memory": _memory(ready, registry),
        "unknown": [],
    }


def preview(spec: Spec, registry: Registry, source: str | None, rows: int, *, plain: bool) -> list[RenderableType]:
    """The first rows of a source, or of every trained one, turn by turn, as they are trained: trained tokens marked."""
    from harness.data.preview import Preview, turns

    ready = run.prepare(spec, registry, mixed=False)
    if source is not None and source not in ready.data.rows:
        raise HarnessError(
            "--source", f"no trained source is called {source!r}", f"there are: {', '.join(ready.data.rows)}"
        )
    shown: list[RenderableType] = []
    for name in [source] if source is not None else list(ready.data.rows):
        told = ready.data.told[name]
        for number, row in enumerate(told.longest.rows[:rows]):
            example, cut = told.training[int(told.longest.kept[number])], int(told.longest.cut[number])
            facts = f"{len(row.input_ids)} tokens, {row.loss_tokens} trained"
            title = f"{name} row {number + 1} ({one_line(example.place)}): {facts}"
            shown.append(Text(title, style="bold"))
            spoken = turns(example, row, ready.template, ready.tokenizer, plain=plain)
            shown.append(Preview(spoken, example.tools, cut))
            shown.append(Text(""))
    return shown


def _without_tokens(planned: Plan, registry: Registry, why: str) -> dict[str, Any]:
    examples = {
        name: data.examples(registry.make("sources", kind, options), options, name)
        for name, (kind, options) in planned.sources.items()
    }
    return {
        "name": planned.name,
        "model": {"path": planned.model["path"], "digest": None},
        "template": planned.template[0],
        "mitigations": list(planned.mitigations),
        "sources": {name: {"read": len(rows)} for name, rows in examples.items()},
        "stages": [
            {
                "name": stage.name,
                "parts": [_part(stage, part) for part in stage.parts],
                "shares": [asdict(share) for share in stage.shares],
                "train": dict(stage.train),
            }
            for stage in planned.stages
        ],
        "suites": [{"name": s.name, "role": s.role, "metrics": list(s.metrics)} for s in planned.suites],
        "memory": None,
        "unknown": [f"tokens, shares, steps and memory: {why}"],
    }


def _part(stage: Stage, part: Part) -> dict[str, Any]:
    unit = shares.unit(stage, part.source)
    return {"source": part.source, "role": part.role, "limit": part.limit, "unit": unit}


def _stage(one: StageData) -> dict[str, Any]:
    stage, sizes = one.stage, data.sizes(one.rows)
    parts = []
    for part in stage.parts:
        made = _part(stage, part)
        counted = sizes.get(part.source, NOTHING)
        parts.append({**made, **counted, "realised": one.shares[part.source][made["unit"]]})
    return {
        "name": stage.name,
        "parts": parts,
        "shares": [{**asdict(share), "realised": shares.realised(share, one.shares)} for share in stage.shares],
        "epochs": len(one.epoch_ends),
        "epoch_shares": [dict(epoch) for epoch in one.epoch_shares],
        "steps": one.steps(),
        "efficiency": one.efficiency,
        "train": dict(stage.train),
    }


def _memory(ready: run.Prepared, registry: Registry) -> dict[str, Any] | None:
    """Bytes of weights, gradients and optimizer; activations come on top. None when the config cannot be had."""
    from harness import model

    skeleton = model.skeleton(ready.location, ready.plan.model)
    if skeleton is None:
        return None
    weights = model.count(skeleton)
    for _, mitigation in plan.mitigations(ready.plan.mitigations, registry):
        skeleton = mitigation.model(skeleton)
    trained = model.count(skeleton, trainable=True)
    frozen = model.count(skeleton) - trained
    precision = ready.plan.train["precision"]
    size = model.dtype(precision, model.device()).itemsize
    return {
        "device": str(model.device()),
        "weights": weights,
        "trained": trained,
        "bytes": frozen * size + trained * TRAINED_BYTES,
    }


# -- for people -------------------------------------------------------------------------------------------------------


def render(made: Mapping[str, Any]) -> RenderableType:
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
        asked = _asked(part, stage["shares"])
        numbers = [f"{part[key]:,}" if key in part else "?" for key in ("rows", "tokens", "loss_tokens")]
        realised = f"{part['realised']:.2%}" if "realised" in part else "?"
        table.add_row(part["source"], part["role"], *numbers, asked, realised)
    return table


def _asked(part: Mapping[str, Any], asked: Sequence[Mapping[str, Any]]) -> str:
    source = part["source"]
    for share in asked:
        if source in share["sources"]:
            others = [name for name in share["sources"] if name != source]
            beside = f", with {' and '.join(others)}" if others else ""
            return f"{share['amount']:.1%} of {share['unit'].replace('loss_tokens', 'trained tokens')}{beside}"
    return "all rows" if part["limit"] is None else f"all of {part['limit']:,} rows at most"
