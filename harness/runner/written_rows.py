"""Rows that a model writes for a mitigation: written once, recorded in the run's folder, verified, and mixed in.

Rows of the base model are in `written/<mitigation>/<source>.jsonl` of the run's folder. Those of the model with which a
stage begins are in `stages/<stage>/written/<mitigation>/<source>.jsonl`, and so are those of the base model for a stage
whose settings differ from those of an earlier stage. A resumed run and the other processes read them from there. Those
of the base model also are in the cache of evaluations, if the mitigation has `generation_settings`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from harness.data import written_rows
from harness.data.reading.corpus import CorpusView
from harness.data.tokenization.tokenize import TokenizedCorpus
from harness.data.tokenization.tokenized_rows import TokenizedRows
from harness.data.written_rows import WrittenRow
from harness.errors import RunError
from harness.evaluation import base_cache
from harness.evaluation.evaluate import eval_mode
from harness.evaluation.fingerprint import evaluation_fingerprint
from harness.evaluation.written_responses import PromptRowsOfModel
from harness.events import RowsWritten
from harness.interfaces.mitigation import Mitigation
from harness.runner.context import RunContext
from harness.runner.rows_to_write import RowsToWrite
from harness.seeding import derive_seed
from harness.spec import plan as plan_module
from harness.types import Example, Stage


def write_rows(context: RunContext, model: Any, todo: Sequence[RowsToWrite]) -> None:
    """Let a model write rows, and mix them into their stages. Called in every process.

    Args:
        context: The run.
        model: The model that writes them; None: only rows that were written before are read.
        todo: The rows; all of a stage that the model writes.
    """
    for stage_index in dict.fromkeys(task.stage_index for task in todo):
        stage = context.plan.stages[stage_index - 1]
        mixed: dict[str, tuple[CorpusView, TokenizedCorpus]] = {}
        events = []
        for task in (task for task in todo if task.stage_index == stage_index):
            rows, cached = _read_or_write(context, model, stage, task)
            if rows is None:
                return
            view, tokenized = written_rows.tokenize_written_rows(
                task.source,
                rows,
                context.prepared.data,
                context.prepared.template,
                context.prepared.tokenizer,
                stage.train["max_length"],
                context.progress,
            )
            if task.is_mixed:
                mixed[task.source] = (view, tokenized)
            else:
                own = context.written_rows.setdefault(stage_index, {}).setdefault(task.mitigation, {})
                own[task.source] = tokenized.rows
            events.append((task, rows, tokenized.rows, cached))
        if mixed:
            context.written_stages[stage_index] = written_rows.rebuild_stage(
                stage, mixed, context.prepared.data, context.prepared.options, context.plan.seed
            )
        _report(context, stage_index, events)


def _read_or_write(
    context: RunContext, model: Any, stage: Stage, task: RowsToWrite
) -> tuple[list[WrittenRow] | None, bool]:
    """Return the rows, and whether they come from the cache. The main process writes them if no record has them."""
    file = context.folder.path / task.folder / task.mitigation / f"{task.source}.jsonl"
    cached = False
    with context.processes.main_first():
        rows = written_rows.load_written_rows(file)
        if rows is None and model is not None and context.processes.is_main:
            rows, cached = _load_or_generate(context, model, stage, task)
            rows = written_rows.reject_evaluated_prompts(rows, context.prepared.data)
            written_rows.save_written_rows(file, rows)
            rows = written_rows.load_written_rows(file)  # as the other processes and a resumed run have them
    if context.processes.broadcast(rows is not None) and rows is None:
        hint = "let its disk show new files to all nodes at once, e.g. mount NFS with lookupcache=positive"
        raise RunError(str(file), "the main process wrote this file, but this process does not see it", hint)
    return rows, cached


def _load_or_generate(
    context: RunContext, model: Any, stage: Stage, task: RowsToWrite
) -> tuple[list[WrittenRow], bool]:
    prepared = context.prepared
    options = plan_module.stage_mitigations(context.plan, stage)[task.mitigation]
    mitigation: Mitigation = context.registry.create("mitigations", task.mitigation, options)
    view = written_rows.prompts_of_source(prepared.data, task.source, task.limit, context.plan.seed)
    seed = derive_seed(context.plan.seed, "written rows", task.source)
    max_length = int(stage.train["max_length"])
    prompts = PromptRowsOfModel(task.source, view, prepared.tokenizer, prepared.template, max_length, context.progress)
    with eval_mode(model), torch.no_grad(), context.autocast(model):
        key = None
        settings = mitigation.generation_settings() if task.model == "base" else None
        if settings is not None:
            ids = [f"{content_hash:016x}" for content_hash in view.content_hashes.tolist()]
            fingerprint = evaluation_fingerprint(model, prepared.tokenizer, prepared.template)
            depends_on = {"settings": settings, "seed": seed, "max_length": max_length}
            key = base_cache.measurement_key(0, fingerprint, "written rows", depends_on, ids, batches=())
        entry = None if key is None else base_cache.load_measurement(key, 1)
        if entry is not None:
            return written_rows.rows_from_json(entry[0]["rows"]), True
        yielded = mitigation.generate_rows(stage, model, prompts, seed=seed)
        rows = written_rows.validate_written_rows(yielded, task.mitigation)
    if key is not None:
        base_cache.save_measurement(key, [{"rows": written_rows.rows_to_json(rows)}])
    return rows, False


def _report(
    context: RunContext,
    stage_index: int,
    written: Sequence[tuple[RowsToWrite, Sequence[WrittenRow], TokenizedRows, bool]],
) -> None:
    """Emit what was written, and write it and the new shares to data.json."""
    if not context.processes.is_main:
        return
    stage_data = context.written_stages.get(stage_index)
    entries = []
    for task, rows, used, cached in written:
        shares: dict[str, Any] = {}
        if task.is_mixed and stage_data is not None:
            shares = {
                "shares": stage_data.shares,
                "epoch_shares": stage_data.epoch_shares,
                "efficiency": stage_data.efficiency,
            }
        rejected = written_rows.count_rejected(rows)
        valid = sum(isinstance(row, Example) for row in rows)
        if valid > len(used):
            rejected["equal to another, or without a trained token"] = valid - len(used)
        given = written_rows.prompts_of_source(context.prepared.data, task.source, task.limit, context.plan.seed)
        entry: dict[str, Any] = {
            "mitigation": task.mitigation,
            "source": task.source,
            "model": task.model,
            "prompts": len(rows) if task.writes_prompts else len(given),
            "rows": len(used),
            "unchanged": int(np.isin(used.ids, given.content_hashes).sum()),
            "rejected": rejected,
            "cached": cached,
        }
        context.registry.emit(RowsWritten(stage_index=stage_index, **entry, **shares))
        entries.append({"stage": context.plan.stages[stage_index - 1].name, **entry})
    data = context.folder.read_json("data.json")
    if data is not None:
        context.folder.write_json("data.json", _with_written_rows(data, stage_index, stage_data, entries))


def _with_written_rows(
    data: Mapping[str, Any], stage_index: int, stage_data: Any, entries: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """Return the content of data.json with what was written, and the shares that the stage has with it."""
    changed = {**data, "written": [*data.get("written", ()), *entries]}
    for name in ("shares", "epoch_shares", "efficiency") if stage_data is not None else ():
        values = list(data[name])
        values[stage_index - 1] = getattr(stage_data, name)
        changed[name] = values
    return changed
