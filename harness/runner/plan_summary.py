"""What would run: the plan in numbers, and rows as they would be trained. Loads no weights.

Where the model's tokenizer cannot be had, rows are counted and the reason is given in the place of tokens.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from harness.data.mixing import stage_layout
from harness.data.reading import corpus
from harness.registry import Registry
from harness.runner import prepare
from harness.spec import plan, shares
from harness.spec.spec import Spec
from harness.types import Part, Plan, Stage, StageData

NOTHING = {"rows": 0, "tokens": 0, "loss_tokens": 0}

TRAINED_BYTES = 16
"""A trained weight is four float32 numbers: itself, its gradient, and the two that AdamW keeps."""


def make(spec: Spec, registry: Registry) -> dict[str, Any]:
    """The outline as plain data: `stages`, `suites`, `sources`, `memory`, `unknown` (why numbers are missing)."""
    planned = plan.make(spec, registry)
    try:
        ready = prepare.prepare(spec, registry)
    except prepare.ModelUnreachable as error:
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


def _without_tokens(planned: Plan, registry: Registry, why: str) -> dict[str, Any]:
    examples = {
        name: corpus.examples(registry.make("sources", kind, options), options, name)
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
    stage, sizes = one.stage, stage_layout.sizes(one.rows)
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


def _memory(ready: prepare.Prepared, registry: Registry) -> dict[str, Any] | None:
    """Bytes of weights, gradients and optimizer; activations come on top. None when the config cannot be had."""
    from harness.model import device, load

    skeleton = load.skeleton(ready.location, ready.plan.model)
    if skeleton is None:
        return None
    weights = load.count(skeleton)
    for _, mitigation in plan.mitigations(ready.plan.mitigations, registry):
        skeleton = mitigation.model(skeleton)
    trained = load.count(skeleton, trainable=True)
    frozen = load.count(skeleton) - trained
    precision = ready.plan.train["precision"]
    size = device.dtype(precision, device.device()).itemsize
    return {
        "device": str(device.device()),
        "weights": weights,
        "trained": trained,
        "bytes": frozen * size + trained * TRAINED_BYTES,
    }


# -- for people -------------------------------------------------------------------------------------------------------
