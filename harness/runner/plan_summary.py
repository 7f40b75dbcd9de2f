"""The plan in numbers: stages, suites, sources and memory. Loads no weights.

If the model's tokenizer is not available, rows are counted without tokens, and the reason is given.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from harness.data.mixing import stage_layout
from harness.data.reading import corpus
from harness.registry import Registry
from harness.runner import bounded_plan, prepare
from harness.spec import plan, shares
from harness.spec.spec import Spec
from harness.types import Plan, Stage, StageDataset, StageSource

ZERO_SIZES = {"rows": 0, "tokens": 0, "loss_tokens": 0}

BYTES_PER_TRAINED_WEIGHT = 16
"""Four float32 numbers: the weight, its gradient, and the two moments of AdamW."""


def summarize_plan(spec: Spec, registry: Registry) -> dict[str, Any]:
    """Summarize the plan as plain data.

    Returns:
        `name`, `model`, `template`, `mitigations`, `sources`, `stages`, `suites`, `memory` and `unknown` (why numbers
        are missing).

    Raises:
        HarnessError: If the spec or the data is invalid.
    """
    run_plan = bounded_plan.build_bounded_plan(spec, registry)
    summary: dict[str, Any] = {
        "name": run_plan.name,
        "model": {"path": run_plan.model["path"], "digest": None},
        "template": run_plan.template[0],
        "mitigations": list(run_plan.mitigations),
    }
    try:
        prepared = prepare.prepare_run(spec, registry, plan=run_plan)
    except prepare.ModelUnreachable as error:
        return {**summary, **_summarize_without_tokens(run_plan, registry, str(error))}
    summary["model"]["digest"] = prepared.location.digest
    return {
        **summary,
        "sources": {name: dict(counts) for name, counts in prepared.data.counts.items()},
        "stages": [_stage_summary(stage_data) for stage_data in prepared.data.stages],
        "suites": [
            {
                "name": suite.name,
                "role": suite.role,
                "rows": len(prepared.data.suite_examples[suite.name]),
                "metrics": list(suite.metrics),
            }
            for suite in run_plan.suites
        ],
        "memory": _estimate_memory(prepared, registry),
        "unknown": [],
    }


def _summarize_without_tokens(run_plan: Plan, registry: Registry, reason: str) -> dict[str, Any]:
    """Return the part of the summary that needs no tokenizer. reason: why there is none."""
    examples = {
        name: corpus.read_examples(registry.create("sources", source_type, options), options, name)
        for name, (source_type, options) in run_plan.sources.items()
    }
    return {
        "sources": {name: {"read": len(rows)} for name, rows in examples.items()},
        "stages": [
            {
                "name": stage.name,
                "parts": [_source_summary(stage, source) for source in stage.sources],
                "shares": [asdict(share) for share in stage.shares],
                "train": dict(stage.train),
            }
            for stage in run_plan.stages
        ],
        "suites": [
            {"name": suite.name, "role": suite.role, "metrics": list(suite.metrics)} for suite in run_plan.suites
        ],
        "memory": None,
        "unknown": [f"tokens, shares, steps and memory: {reason}"],
    }


def _source_summary(stage: Stage, source: StageSource) -> dict[str, Any]:
    unit = shares.unit_of_source(stage, source.source)
    return {"source": source.source, "role": source.role, "limit": source.limit, "unit": unit}


def _stage_summary(stage_data: StageDataset) -> dict[str, Any]:
    stage, sizes = stage_data.stage, stage_layout.sizes_by_source(stage_data.rows)
    parts = []
    for source in stage.sources:
        summary = _source_summary(stage, source)
        source_sizes = sizes.get(source.source, ZERO_SIZES)
        realized = stage_data.shares[source.source][summary["unit"]]
        parts.append({**summary, **source_sizes, "realised": realized})
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
    """Estimate the bytes of weights, gradients and optimizer, without activations.

    Returns:
        `device`, `weights`, `trained` (numbers of weights) and `bytes`; None if the model's config is not available.
    """
    from harness.model import device, load, precision

    model = load.load_on_meta(prepared.location, prepared.plan.model)  # shapes without weights
    if model is None:
        return None
    weights = load.parameter_count(model)
    for _, mitigation in plan.create_mitigations(prepared.plan.mitigations, registry):
        model = mitigation.prepare_model(model, seed=prepared.plan.seed)
    trained = load.parameter_count(model, trainable=True)
    frozen = load.parameter_count(model) - trained
    always_float32 = sum(w.numel() for w in precision.norms_and_embeddings(model) if not w.requires_grad)
    size = device.resolve_dtype(prepared.plan.train["precision"], device.select_device()).itemsize
    return {
        "device": str(device.select_device()),
        "weights": weights,
        "trained": trained,
        "bytes": (frozen - always_float32) * size + always_float32 * 4 + trained * BYTES_PER_TRAINED_WEIGHT,
    }
