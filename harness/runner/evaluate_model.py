"""Evaluate a model without training it: that of a finished run, or the base model of a spec."""

from __future__ import annotations

import pickle
import shutil
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from harness.errors import HarnessError
from harness.evaluation import context as context_module
from harness.evaluation import evaluate, scoring
from harness.evaluation.predictions import stored_files
from harness.model import device, locate, save
from harness.model import load as load_module
from harness.model.precision import autocast_context
from harness.registry import Registry
from harness.runner import continue_run
from harness.runner.batch_support import probe_and_warn
from harness.runner.error_file import error_file
from harness.runner.folder import RunFolder
from harness.runner.prepare import PreparedRun, create_progress, prepare_run
from harness.runner.trained_model import stored_dtype
from harness.spec.spec import Spec
from harness.types import Evaluation
from harness.utils.find_run import RUN_SCHEME
from harness.utils.json_files import scores_as_dicts
from harness.utils.shell_commands import resume_command
from harness.utils.silence import silence_libraries


def evaluate_model(spec: Spec, registry: Registry, path: Path | None) -> tuple[Path, tuple[Evaluation, ...]]:
    """Evaluate a model on the spec's suites, without training.

    Args:
        spec: The spec.
        registry: The components and listeners.
        path: The folder of a finished run, whose model is evaluated. Its answers are reused where they match, and new
            answers are written to `measured/`. None evaluates the spec's model in a new folder.

    Returns:
        The file with the scores, and one evaluation for each suite.

    Raises:
        HarnessError: If the input is invalid or the run has no model.
        RunError: If the evaluation fails or a suite violates its limits.
    """
    if path is not None:
        _require_evaluable_run(spec, path)
    prepared = prepare_run(spec, registry, use_shares=False)
    stage_index = len(prepared.plan.stages) if path is not None else 0
    folder = RunFolder(path) if path is not None else RunFolder.create(spec.document["output"], spec.document["name"])
    with folder.locked(), error_file(folder.path if path is None else folder.path / "measured"):
        if path is None:
            folder.write_json("spec.json", spec.document)
        predictions = folder.path / "predictions" if path is None else _copy_predictions(path, stage_index)
        model, base_context = _load_evaluated_model(spec, prepared, registry, path)
        batch_support = probe_and_warn(model, prepared, registry)
        with autocast_context(model, prepared.plan.train["precision"]):
            evaluated_model = context_module.ModelToEvaluate(
                model,
                prepared.tokenizer,
                prepared.template,
                stage=stage_index,
                seed=prepared.plan.seed,
                max_length=prepared.max_length,
                templates=prepared.templates,
                base_context=base_context,
                batch_support=batch_support,
                use_cache=path is None,
            )
            evaluations = evaluate.evaluate_suites(
                evaluated_model,
                prepared.plan.suites,
                prepared.data.suite_examples,
                prepared.metrics,
                folder=predictions,
                progress=create_progress(registry),
            )
        scores_file = "measured.json" if path is None else "measured/scores.json"
        folder.write_json(scores_file, {"stage": stage_index, "suites": scores_as_dicts(evaluations)})
        scoring.raise_on_violations(evaluations)
    return folder.path / scores_file, evaluations


def _require_evaluable_run(spec: Spec, run_folder: Path) -> None:
    """Require a folder with a model, and no override of it. Raises HarnessError."""
    for override in spec.overrides:
        if override.partition("=")[0].partition(".")[0] == "model":
            what = "the model is the one of the run and cannot be overridden"
            raise HarnessError(f"--set {override}", what, "remove this --set")
    if not (run_folder / "model").is_dir():
        hint = f"finish the run first: {resume_command(run_folder)}"
        if (run_folder / "arms").is_dir():
            hint = f"name the folder of one of its arms, below {run_folder / 'arms'}"
        raise HarnessError(str(run_folder), "the folder has no model of a finished run", hint)


def _copy_predictions(run_folder: Path, stage_index: int) -> Path:
    """Create the folder of the new answers, with a copy of the answers after the last stage, to be reused."""
    folder = run_folder / "measured" / "predictions"
    folder.mkdir(parents=True, exist_ok=True)
    for file in stored_files(run_folder / "predictions", stage_index):
        if not (folder / file.name).exists():
            shutil.copyfile(file, folder / file.name)
    return folder


def _load_evaluated_model(
    spec: Spec, prepared: PreparedRun, registry: Registry, run_folder: Path | None
) -> tuple[Any, context_module.BaseModelContext | None]:
    """Load the model of a finished run, or the spec's model without one.

    Returns:
        The model, and the context that gives the base model, if a metric compares with it.
    """
    progress = create_progress(registry)

    def load(location: locate.ModelLocation, settings: Mapping[str, Any], precision: str | None = None) -> Any:
        device.set_tf32(prepared.plan.train.get("tf32", False))
        precision = precision or prepared.plan.train["precision"]
        return load_module.load_model(location, settings, precision=precision, progress=progress)

    settings = prepared.plan.model
    if run_folder is None:
        return load(prepared.location, settings), None
    requires_base = prepared.requires_base_model()
    if (run_folder / "model" / "adapter_config.json").is_file():
        if prepared.location.kind == "run":
            settings = {**settings, "path": f"{RUN_SCHEME}{run_folder.resolve()}", "revision": None}
            model = load(locate.resolve_model(settings, progress=progress), settings)
        else:
            model = _load_adapter(load(prepared.location, settings), run_folder / "model")
        return model, (lambda: save.base_model(model)) if requires_base else None
    saved = {**settings, "path": str(run_folder / "model"), "revision": None}
    # Weights that were saved in float32 were measured in float32: 16 bits would round norms and embeddings.
    precision = "float32" if stored_dtype(run_folder / "model") == "float32" else None
    model = load(locate.resolve_model(saved, progress=progress), saved, precision)
    if not requires_base:
        return model, None
    base_model = load(continue_run.original_base(spec, prepared, progress), settings)
    return model, lambda: nullcontext(base_model)


def _load_adapter(model: Any, folder: Path) -> Any:
    from peft import PeftModel
    from safetensors import SafetensorError

    try:
        with silence_libraries():
            return PeftModel.from_pretrained(model, str(folder)).eval()
    except (pickle.UnpicklingError, EOFError) as error:
        what = f"the adapter's .bin file is damaged, or holds more than weights ({type(error).__name__})"
        raise HarnessError(str(folder), what, "save only the weights: model.save_pretrained(FOLDER)") from error
    except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as error:
        what = f"cannot load the adapter into the model ({type(error).__name__}: {error})"
        raise HarnessError(str(folder), what, "restore the base model that the run started from") from error
