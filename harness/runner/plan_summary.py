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
from harness.types import Plan, Stage, StageDataset, StageSource

ZERO_SIZES = {"rows": 0, "tokens": 0, "loss_tokens": 0}

BYTES_PER_TRAINED_WEIGHT = 16
"""A trained weight is four float32 numbers: itself, its gradient, and the two that AdamW keeps."""


def summarize_plan(spec: Spec, registry: Registry) -> dict[str, Any]:
    """The outline as plain data: `stages`, `suites`, `sources`, `memory`, `unknown` (why numbers are missing)."""
    planned = plan.build_plan(spec, registry)
    try:
        ready = prepare.prepare_run(spec, registry)
    except prepare.ModelUnreachable as error:
        return _summarize_without_tokens(planned, registry, str(error))
    return {
        "name": planned.name,
        "model": {"path": planned.model["path"], "digest": ready.location.digest},
        "template": planned.template[0],
        "mitigations": list(planned.mitigations),
        "sources": {name: dict(counts) for name, counts in ready.data.counts.items()},
        "stages": [_stage_summary(one) for one in ready.data.stages],
        "suites": [
            {"name": s.name, "role": s.role, "rows": len(ready.data.suite_examples[s.name]), "metrics": list(s.metrics)}
            for s in planned.suites
        ],
        "memory": _estimate_memory(ready, registry),
        "unknown": [],
    }


def _summarize_without_tokens(planned: Plan, registry: Registry, reason: str) -> dict[str, Any]:
    examples = {
        name: corpus.read_examples(registry.create("sources", kind, options), options, name)
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
                "parts": [_source_summary(stage, part) for part in stage.sources],
                "shares": [asdict(share) for share in stage.shares],
                "train": dict(stage.train),
            }
            for stage in planned.stages
        ],
        "suites": [{"name": s.name, "role": s.role, "metrics": list(s.metrics)} for s in planned.suites],
        "memory": None,
        "unknown": [f"tokens, shares, steps and memory: {reason}"],
    }


def _source_summary(stage: Stage, part: StageSource) -> dict[str, Any]:
    unit = shares.unit_of_source(stage, part.source)
    return {"source": part.source, "role": part.role, "limit": part.limit, "unit": unit}


def _stage_summary(stage_data: StageDataset) -> dict[str, Any]:
    stage, sizes = stage_data.stage, stage_layout.sizes_by_source(stage_data.rows)
    parts = []
    for part in stage.sources:
        made = _source_summary(stage, part)
        counted = sizes.get(part.source, ZERO_SIZES)
        parts.append({**made, **counted, "realised": stage_data.shares[part.source][made["unit"]]})
    return {
        "name": stage.name,
        "parts": parts,
        "shares": [
            {**asdict(share), "realised": shares.realized_share(share, stage_data.shares)} for share in stage.shares
        ],
        "epochs": len(stage_data.epoch_ends),
        "epoch_shares": [dict(epoch) for epoch in stage_data.epoch_shares],
        "steps": stage_data.count_steps(),
        "efficiency": stage_data.efficiency,
        "train": dict(stage.train),
    }


def _estimate_memory(prepared: prepare.PreparedRun, registry: Registry) -> dict[str, Any] | None:
    """Bytes of weights, gradients and optimizer; activations come on top. None when the config cannot be had."""
    from harness.model import device, load

    skeleton = load.load_on_meta(prepared.location, prepared.plan.model)
    if skeleton is None:
        return None
    weights = load.parameter_count(skeleton)
    for _, mitigation in plan.create_mitigations(prepared.plan.mitigations, registry):
        skeleton = mitigation.prepare_model(skeleton, seed=prepared.plan.seed)  # without values
    trained = load.parameter_count(skeleton, trainable=True)
    frozen = load.parameter_count(skeleton) - trained
    precision = prepared.plan.train["precision"]
    size = device.resolve_dtype(precision, device.select_device()).itemsize
    return {
        "device": str(device.select_device()),
        "weights": weights,
        "trained": trained,
        "bytes": frozen * size + trained * BYTES_PER_TRAINED_WEIGHT,
    }


# -- for people -------------------------------------------------------------------------------------------------------
