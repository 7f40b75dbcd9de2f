"""The plan in numbers: stages, suites, sources and memory. Loads no weights.

If the model's tokenizer is not available, rows are counted without tokens, and the reason is given.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from harness.data.mixing import stage_layout
from harness.data.reading import corpus
from harness.data.reading.row_formats import with_row_format
from harness.model.bfloat16_speed import bfloat16_recommendation
from harness.model.cached_tokenizer import load_light_tokenizer
from harness.registry import Registry
from harness.runner import bounded_plan, prepare
from harness.runner.device_table import find_device
from harness.runner.memory_plan import estimate_memory
from harness.runner.rows_to_write import list_rows_to_write
from harness.spec import shares
from harness.spec.spec import Spec
from harness.types import Plan, Stage, StageDataset, StageSource

ZERO_SIZES = {"rows": 0, "tokens": 0, "loss_tokens": 0}


def summarize_plan(spec: Spec, registry: Registry, device: str | None = None, processes: int = 1) -> dict[str, Any]:
    """Summarize the plan as plain data.

    Args:
        spec: The spec.
        registry: The plugin registry.
        device: The device whose memory and time are estimated, see `device_table`; None: this machine.
        processes: Number of processes, with a device each.

    Returns:
        `name`, `model`, `template`, `mitigations`, `sources`, `held_out`, `stages`, `suites`, `memory`,
        `recommendation` (a precision that is faster here, or None) and `unknown` (why numbers are missing).

    Raises:
        HarnessError: If the spec or the data is invalid.
    """
    if device is not None:
        find_device(device)  # before the data is read
    run_plan = bounded_plan.build_bounded_plan(spec, registry)
    summary: dict[str, Any] = {
        "name": run_plan.name,
        "model": {"path": run_plan.model["path"], "digest": None},
        "template": run_plan.template[0],
        "mitigations": list(run_plan.mitigations),
    }
    try:
        prepared = prepare.prepare_run(spec, registry, plan=run_plan, load_light=load_light_tokenizer)
    except prepare.ModelUnreachable as error:
        return {**summary, **_summarize_without_tokens(run_plan, registry, str(error))}
    summary["model"]["digest"] = prepared.location.digest
    return {
        **summary,
        "sources": {name: dict(counts) for name, counts in prepared.data.counts.items()},
        "held_out": {name: dict(rule) for name, rule in prepared.data.held_out_rules.items()},
        "stages": [_stage_summary(stage_data, processes) for stage_data in prepared.data.stages],
        "suites": [
            {
                "name": suite.name,
                "role": suite.role,
                "rows": len(prepared.data.suite_examples[suite.name]),
                "metrics": list(suite.metrics),
            }
            for suite in run_plan.suites
        ],
        "memory": estimate_memory(prepared, registry, device, processes),
        "recommendation": bfloat16_recommendation(run_plan.train["precision"]),
        "unknown": _unwritten_rows(run_plan, registry),
    }


def _summarize_without_tokens(run_plan: Plan, registry: Registry, reason: str) -> dict[str, Any]:
    """Return the part of the summary that needs no tokenizer. reason: why there is none."""
    examples = {
        name: corpus.read_examples(
            registry.create("sources", source_type, options), with_row_format(options, registry), name
        )
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
        "recommendation": bfloat16_recommendation(run_plan.train["precision"]),
        "unknown": [f"tokens, shares, steps and memory: {reason}", *_unwritten_rows(run_plan, registry)],
    }


def _unwritten_rows(run_plan: Plan, registry: Registry) -> list[str]:
    """Return a sentence for each source whose rows a model writes for a mitigation alone."""
    rows = [rows for rows in list_rows_to_write(run_plan, registry) if not rows.is_mixed]
    return list(dict.fromkeys(f"{one.describe()}, not yet written" for one in rows))


def _source_summary(stage: Stage, source: StageSource) -> dict[str, Any]:
    unit = shares.unit_of_source(stage, source.source)
    summary = {"source": source.source, "role": source.role, "limit": source.limit, "unit": unit}
    return {**summary, **({} if source.written_by is None else {"written_by": source.written_by})}


def _stage_summary(stage_data: StageDataset, processes: int = 1) -> dict[str, Any]:
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
        "steps": stage_data.count_steps(processes),
        "efficiency": stage_data.efficiency,
        "train": dict(stage.train),
    }
