"""The entry points of the runner: run a spec, resume a run, run an experiment, evaluate a model."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from harness.distributed.processes import SINGLE_PROCESS, Processes
from harness.errors import HarnessError
from harness.evaluation import context as context_module
from harness.evaluation import evaluate, scoring
from harness.evaluation.predictions import stored_files
from harness.model import load as load_module
from harness.model import locate, save
from harness.model.precision import autocast_context
from harness.registry import Registry
from harness.report.arm_comparison import ArmComparison
from harness.report.run_report import Report
from harness.runner import arms as arms_runner
from harness.runner import continue_run, resume
from harness.runner.batch_support import probe_and_warn
from harness.runner.context import RunContext
from harness.runner.finish_interrupted_run import finish_interrupted_run
from harness.runner.folder import RunFolder
from harness.runner.prepare import PreparedRun, create_progress, prepare_checked_run, prepare_run
from harness.runner.run_stages import run_stages
from harness.spec import arms
from harness.spec.arms import Arm
from harness.spec.spec import Spec
from harness.types import Evaluation
from harness.utils.find_run import RUN_SCHEME
from harness.utils.json_files import scores_as_dicts
from harness.utils.silence import silence_libraries

SpecLoader = Callable[[Sequence[str]], Spec]
"""Loads the spec with additional overrides and without its arms."""


def run(spec: Spec, registry: Registry, processes: Processes = SINGLE_PROCESS) -> Report:
    """Run a spec, from its data to its report. The run's folder stays, however the run ends.

    Args:
        spec: The spec, without arms.
        registry: The components and listeners.
        processes: The processes that share the run; this is the main process. The others call `run_worker`.

    Raises:
        HarnessError: If the input is invalid; no folder is created.
        RunError: If the run fails.
    """
    prepared = prepare_checked_run(spec, registry, processes=processes)
    folder = RunFolder.create(spec.document["output"], spec.document["name"])
    with folder.locked():
        return run_stages(RunContext(spec, registry, prepared, folder, processes=processes))


def resume_run(spec: Spec, registry: Registry, path: Path, processes: Processes = SINGLE_PROCESS) -> Report:
    """Resume an interrupted run: what is finished is read, the rest is computed.

    On CPU the result is bit-identical to an uninterrupted run. A run that was killed after its report is completed; see
    `finish_interrupted_run`. All decisions are in `resume`.

    Args:
        spec: The spec that is stored in the run's folder.
        registry: The components and listeners.
        path: The run's folder.
        processes: The processes that share the run; this is the main process.

    Raises:
        HarnessError: If the run is finished, or its inputs or number of processes changed.
        RunError: If the run fails.
    """
    folder = RunFolder(path)
    resume.require_training_run(path)
    with folder.locked():
        if resume.is_finished(path):
            report = finish_interrupted_run(spec, registry, folder)
            if report is None:
                raise HarnessError(str(path), "the run is finished", f"show its report: harness report {path}")
            return report
        resume.require_same_world_size(folder, processes.world_size)
        prepared = prepare_checked_run(spec, registry, processes=processes)
        return run_stages(RunContext(spec, registry, prepared, folder, processes=processes, resuming=True))


def run_experiment(
    spec: Spec,
    registry: Registry,
    load_spec: SpecLoader,
    *,
    arm_names: Sequence[str] = (),
    path: Path | None = None,
    processes: Processes = SINGLE_PROCESS,
) -> ArmComparison:
    """Run the arms of a spec and compare all arms that have a result.

    The spec and data of every arm are checked before the first one trains. With several processes, the first arm that
    fails ends the experiment.

    Args:
        spec: The spec with its arms.
        registry: The components and listeners.
        load_spec: Loads the spec of an arm.
        arm_names: The arms to run; empty for all.
        path: The folder of an experiment to resume; None to start a new one.
        processes: The processes that share each run; this is the main process.

    Raises:
        HarnessError: If an arm is invalid; the error names the arm.
        RunError: If an arm failed.
    """
    all_arms = arms.expand_arms(spec.document["arms"], spec.where(("arms",)))
    arm_specs = [(arm, _load_arm_spec(arm, load_spec)) for arm in arms.select_arms(all_arms, arm_names)]
    if path is None:
        arm_runs = list(arms_runner.prepare_arms(arm_specs, registry, processes))
        folder = RunFolder.create(spec.document["output"], spec.document["name"])
        folder.write_json("spec.json", spec.document)
    else:
        folder = RunFolder(path)
        for arm in all_arms:
            resume.require_same_world_size(RunFolder(path / "arms" / arm.name), processes.world_size)
        arm_runs = arms_runner.plan_arms(arm_specs, registry)
    with folder.locked():
        return arms_runner.run_arms(spec, arm_runs, registry, folder, processes=processes)


def check_arms(
    arm_specs: Sequence[tuple[Arm, Spec]], registry: Registry, processes: Processes = SINGLE_PROCESS
) -> None:
    """Prepare and check the data of every arm, and keep nothing.

    Args:
        arm_specs: The arms with their specs.
        registry: The components and listeners.
        processes: The processes that will train: a step takes rows for each of them.

    Raises:
        HarnessError: If an arm is invalid; the error names the arm.
    """
    for _ in arms_runner.prepare_arms(arm_specs, registry, processes):
        pass


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
    with folder.locked():
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


def _load_arm_spec(arm: Arm, load_spec: SpecLoader) -> Spec:
    with arms.arm_error_context(arm):
        return load_spec(arm.overrides())


def _require_evaluable_run(spec: Spec, run_folder: Path) -> None:
    """Require a folder with a model, and no override of it. Raises HarnessError."""
    for override in spec.overrides:
        if override.partition("=")[0].partition(".")[0] == "model":
            what = "the model is the one of the run and cannot be overridden"
            raise HarnessError(f"--set {override}", what, "remove this --set")
    if not (run_folder / "model").is_dir():
        hint = f"finish the run first: harness run --resume {run_folder}"
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

    def load(location: locate.ModelLocation, settings: Mapping[str, Any]) -> Any:
        precision = prepared.plan.train["precision"]
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
    model = load(locate.resolve_model(saved, progress=progress), saved)
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
    except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as error:
        what = f"cannot load the adapter into the model ({type(error).__name__}: {error})"
        raise HarnessError(str(folder), what, "restore the base model that the run started from") from error
