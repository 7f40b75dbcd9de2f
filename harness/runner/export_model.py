"""Export the trained model of a finished run with an exporter, and compare the export with the run's model."""

from __future__ import annotations

import contextlib
import copy
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from harness.data.tokenization.special_tokens import special_token_guard
from harness.data.tokenization.turn_separators import find_turn_separators, serving_chat_template, tokenizer_template
from harness.errors import HarnessError
from harness.evaluation.generation import resolve_stops
from harness.interfaces.exporter import Exporter, ExportSource
from harness.model import save
from harness.model.load import PUBLISHED_CONFIG_ATTRIBUTE
from harness.model.model_config import load_located_config
from harness.registry import Registry
from harness.runner import export_comparison
from harness.runner.prepare import create_progress
from harness.runner.trained_model import TrainedModel, load_trained_model
from harness.spec.component_options import fill_component_options
from harness.utils import cache_dir
from harness.utils.shell_commands import harness_command, resume_command
from harness.utils.silence import silence_libraries
from harness.utils.write_errors import report_write_errors


def export_model(
    registry: Registry, run: Path, name: str, options: Mapping[str, Any], folder: Path, *, verify: bool = True
) -> list[str]:
    """Export the model of a run into a new folder, atomically.

    Args:
        registry: The components.
        run: The folder of a finished run.
        name: Name of the exporter.
        options: Its options; those that are missing have their defaults.
        folder: The folder to create.
        verify: Whether the export is loaded again and compared with the run's model.

    Returns:
        What was written and how it compares, in lines.

    Raises:
        HarnessError: The run has no model, an option is invalid, the folder exists, or the export fails or differs.
        RunError: The folder cannot be written or its disk is full.
    """
    name = registry.aliases("exporters").get(name, name)
    exporter: Exporter = registry.create(
        "exporters", name, fill_component_options(registry, "exporters", name, options)
    )
    exporter.check_available()
    if not (run / "model").is_dir():
        hint = f"finish it first: {resume_command(run)} (or name another run)"
        raise HarnessError(str(run), "the run has no model", hint)
    if folder.exists():
        raise HarnessError(str(folder), "the folder exists", "name a new folder")
    progress = create_progress(registry)
    draft = folder.with_name(f".{folder.name}.draft-{os.getpid()}")
    remedy = harness_command("export", run, "--to", name)
    with report_write_errors(folder, "the exported model", remedy), contextlib.ExitStack() as cleanup:
        cleanup.callback(shutil.rmtree, draft, ignore_errors=True)
        draft.mkdir(parents=True)
        trained = load_trained_model(registry, run, precision="float32", progress=progress)
        items = export_comparison.choose_items(run) if verify else []
        measured = export_comparison.measure_items(trained, items)
        tokenizer = trained.tokenizer
        lines = [exporter.export(build_source(registry, trained), draft)]
        if verify:
            progress("compare", 0, 0, f"{len(items)} items")
            exported = exporter.load(draft, export_comparison.MAX_TOKENS)
            comparison = export_comparison.compare_export(trained, measured, exported)
            del exported
            remedy_of_rounding = _command_in_float32(registry, name, options, run, folder)
            export_comparison.require_agreement(comparison, folder, tokenizer, remedy_of_rounding)
            lines += export_comparison.describe_comparison(comparison, tokenizer)
        else:
            lines.append("not verified")
        if published := exporter.publish(draft):
            lines.append(published)
        cache_dir.move_into_place(draft, folder)
    return lines


def _command_in_float32(
    registry: Registry, exporter: str, options: Mapping[str, Any], run: Path, folder: Path
) -> str | None:
    """Return the command that exports in float32; None if the exporter has no such option, or it was chosen."""
    schema = registry.components["exporters"][exporter].options
    for key, option in schema.items():
        for value in {"float32", "f32"} & set(option.get("enum", ())):
            if options.get(key) != value:
                command = harness_command("export", run, "--to", exporter, folder, "--set", f"{key}={value}")
                return f"export float32: {command}"
    return None


def build_source(registry: Registry, trained: TrainedModel) -> ExportSource:
    """Return what an exporter gets. Its `merge` uses up the model of `trained`."""
    tokenizer, template = trained.tokenizer, trained.template
    own_template = tokenizer_template(registry, tokenizer)
    begin_token = tokenizer.decode(special_token_guard(tokenizer).bos_prefix)
    separators = find_turn_separators(template, tokenizer)
    chat_template = serving_chat_template(template, own_template, tokenizer, separators, begin_token)
    exported_tokenizer = copy.deepcopy(tokenizer)
    exported_tokenizer.chat_template = chat_template
    card = trained.run / "model" / "README.md"
    return ExportSource(
        name=trained.run.name,
        model=trained.run / "model",
        card=card.read_text(encoding="utf-8") if card.is_file() else "",
        chat_template=chat_template,
        separators=separators,
        stops=tuple(template.stop_strings(tokenizer)),
        begin_token=begin_token,
        tokenizer=exported_tokenizer,
        merge=lambda dtype: _merge(trained, dtype),
    )


def _merge(trained: TrainedModel, dtype: str) -> Any:
    """Return the model without an adapter in a dtype.

    The adapter is merged in float32; the sum is rounded once.
    """
    model = trained.model
    with silence_libraries():
        if save.is_peft_model(model):
            model = save.merge_adapter(model)
    if dtype == "auto":
        config = load_located_config(trained.location.base or trained.location) or {}
        dtype = str(config.get("dtype") or config.get("torch_dtype") or "float32").removeprefix("torch.")
    model = model.to(getattr(torch, dtype))
    model.config.use_cache = True
    stops = resolve_stops(trained.template, trained.tokenizer)
    published = getattr(model, PUBLISHED_CONFIG_ATTRIBUTE, None)
    if published is not None:
        model.generation_config = save.saveable_generation_config(published, model.generation_config)
    ends = [*sorted(stops.token_ids), *([] if stops.eos_id is None else [stops.eos_id])]
    if ends:
        model.generation_config.eos_token_id = ends if len(ends) > 1 else ends[0]
    return model
