"""The doors of the room: run a spec, go on with a run, run its arms, measure a model without training it."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from harness.distributed.processes import SINGLE_PROCESS, Processes
from harness.errors import HarnessError, raise_all
from harness.evaluation import context, evaluate, scoring
from harness.model import load as load_module
from harness.model import locate, save
from harness.registry import Registry
from harness.report.arm_comparison import ArmComparison
from harness.report.run_report import Report
from harness.runner import arms as arms_runner
from harness.runner import continue_run, resume
from harness.runner.folder import RunFolder
from harness.runner.main_process import run_stages
from harness.runner.metadata import require_same_world_size
from harness.runner.prepare import PreparedRun, analyze_prepared_data, create_progress, prepare_run
from harness.spec import arms
from harness.spec.arms import Arm
from harness.spec.spec import Spec
from harness.types import Evaluation, Event
from harness.utils.find_run import RUN_SCHEME
from harness.utils.json_files import scores_as_dicts

SpecLoader = Callable[[Sequence[str]], Spec]
"""The spec with more overrides, without its arms."""


def run(spec: Spec, registry: Registry, processes: Processes = SINGLE_PROCESS) -> Report:
    """Run a spec from its data to its report. The folder of the run stays, however the run ends.

    processes: the processes that train it together, of which this is the main one; the others call `run_worker`.

    Raises HarnessError for bad input before the run's folder is made, RunError for what fails after.
    """
    ready = prepare_run(spec, registry, processes=processes)
    found = analyze_prepared_data(spec, ready, registry)
    raise_all(found.failures)
    folder = RunFolder.create(spec.document["output"], spec.document["name"])
    with folder.locked():
        return run_stages(spec, registry, ready, found, folder, processes=processes)


def resume_run(spec: Spec, registry: Registry, path: Path, processes: Processes = SINGLE_PROCESS) -> Report:
    """Go on with a run that was broken off: what it finished is read, not done anew.

    spec: the run's own, from its folder. The result equals that of the run had it not been broken off, bit for bit on
    a CPU. Of a run that was killed after its report, what its end lacks is done (see `closing`). Raises HarnessError
    when the run is finished, or when its data or the number of processes is no longer what it began with.
    """
    folder = RunFolder(path)
    with folder.locked():
        if (path / "report.json").is_file():
            closed = resume.finish_interrupted_run(spec, registry, folder)
            if closed is None:
                raise HarnessError(str(path), "the run is finished", "start another one, or look at its report")
            return closed
        require_same_world_size(folder, processes.world_size)
        ready = prepare_run(spec, registry, processes=processes)
        found = analyze_prepared_data(spec, ready, registry)
        raise_all(found.failures)
        return run_stages(spec, registry, ready, found, folder, resuming=True, processes=processes)


def run_experiment(
    spec: Spec,
    registry: Registry,
    load_spec: SpecLoader,
    *,
    arm_names: Sequence[str] = (),
    path: Path | None = None,
    processes: Processes = SINGLE_PROCESS,
) -> ArmComparison:
    """Run the arms of a spec, or those of these names, and compare all that have a result.

    load_spec: the spec anew with an arm's overrides. path: the folder of an experiment that is gone on with.
    Every arm's spec and data are proven before the first one trains. With several processes the first arm that fails is
    the last one that runs: the others cannot know where it was. Raises HarnessError and RunError as `run`.
    """
    every = arms.expand_arms(spec.document["arms"], spec.where(("arms",)))
    specs = [(arm, _load_arm_spec(arm, load_spec)) for arm in arms.select_arms(every, arm_names)]
    if path is None:
        check_arms(specs, registry, processes)
        folder = RunFolder.create(spec.document["output"], spec.document["name"])
        folder.write_json("spec.json", spec.document)
    else:
        folder = RunFolder(path)
        for arm in every:
            require_same_world_size(RunFolder(path / "arms" / arm.name), processes.world_size)
    with folder.locked():
        runner = _create_arm_runner(registry, processes)
        return arms_runner.run_arms(spec, specs, registry, folder, runner, processes=processes)


def check_arms(specs: Sequence[tuple[Arm, Spec]], registry: Registry, processes: Processes = SINGLE_PROCESS) -> None:
    """Prepare and prove the data of every arm. Raises HarnessError that names the arm.

    processes: the processes that are to train, for an update takes rows for each.
    """
    for number, (arm, own) in enumerate(specs, start=1):
        facts, began = {"arm": arm.name, "number": number, "of": len(specs)}, time.monotonic()
        registry.emit(Event("arm_preparing", data=facts))
        with arms.arm_error_context(arm):
            ready = prepare_run(own, registry, processes=processes)
            raise_all(analyze_prepared_data(own, ready, registry).failures)
        rows = {key: sum(one.get(key, 0) for one in ready.data.counts.values()) for key in ("used", "evaluated")}
        registry.emit(Event("arm_prepared", data={**facts, **rows, "seconds": time.monotonic() - began}))
    registry.emit(Event("arms_prepared"))


def _load_arm_spec(arm: Arm, load_spec: SpecLoader) -> Spec:
    with arms.arm_error_context(arm):
        return load_spec(arm.overrides())


def evaluate_model(spec: Spec, registry: Registry, path: Path | None) -> tuple[Path, tuple[Evaluation, ...]]:
    """Evaluate a model on the spec's suites, and train nothing.

    path: the folder of a finished run, whose model is measured; what it answered before is not asked again, and stays
    as it was: new answers stand in `measured/`. None: the spec's base model, in a new folder. Returns the folder and
    the evaluations. Raises HarnessError and RunError.
    """
    for override in spec.overrides if path is not None else ():
        if override.partition("=")[0].partition(".")[0] == "model":
            raise HarnessError(f"--set {override}", "the model of a run is the one that it made", "leave it out")
    if path is not None and not (path / "model").is_dir():
        hint = f"let it come to its end: harness run --resume {path}"
        if (path / "arms").is_dir():
            hint = f"name the folder of one of its arms, below {path / 'arms'}"
        raise HarnessError(str(path), "there is no model of a finished run here", hint)
    ready = prepare_run(spec, registry, use_shares=False)
    folder = RunFolder(path) if path is not None else RunFolder.create(spec.document["output"], spec.document["name"])
    with folder.locked():
        if path is None:
            folder.write_json("spec.json", spec.document)
        stage = len(ready.plan.stages) if path is not None else 0
        answers = folder.path / "predictions" if path is None else _prediction_folder(path, stage)
        net, base = _load_evaluated_model(spec, ready, registry, path)
        with load_module.autocast_context(net, ready.plan.train["precision"]):
            subject = context.ModelToEvaluate(
                net,
                ready.tokenizer,
                ready.template,
                stage=stage,
                seed=ready.plan.seed,
                max_length=ready.max_length,
                templates=ready.templates,
                base_context=base,
            )
            found = evaluate.evaluate_suites(
                subject,
                ready.plan.suites,
                ready.data.suite_examples,
                ready.metrics,
                folder=answers,
                progress=create_progress(registry),
            )
        folder.write_json(
            "measured.json" if path is None else "measured/scores.json",
            {"stage": stage, "suites": scores_as_dicts(found)},
        )
    scoring.raise_on_violations(found)
    return folder.path, found


def _prediction_folder(run_folder: Path, stage: int) -> Path:
    """The folder for what a finished run is asked again; begins with what it answered after its last stage."""
    folder = run_folder / "measured" / "predictions"
    folder.mkdir(parents=True, exist_ok=True)
    for file in (run_folder / "predictions").glob(f"*-stage{stage}.jsonl"):
        if not (folder / file.name).exists():
            shutil.copyfile(file, folder / file.name)
    return folder


def _load_evaluated_model(
    spec: Spec, prepared: PreparedRun, registry: Registry, run_folder: Path | None
) -> tuple[Any, context.BaseModelContext | None]:
    """The model of a finished run, or the base model, and how to have the base where a metric compares with it."""

    def load(location: locate.ModelLocation, settings: Mapping[str, Any]) -> Any:
        precision = prepared.plan.train["precision"]
        return load_module.load_model(location, settings, precision=precision, progress=create_progress(registry))

    if run_folder is None:
        return load(prepared.location, prepared.plan.model), None
    reads_base = any(one.requires == "base" for suite in prepared.metrics.values() for one in suite.values())
    if (run_folder / "model" / "adapter_config.json").is_file() and prepared.location.kind == "run":
        settings = {**prepared.plan.model, "path": f"{RUN_SCHEME}{run_folder.resolve()}", "revision": None}
        net = load(locate.resolve_model(settings, progress=create_progress(registry)), settings)
        return net, (lambda: save.base_model(net)) if reads_base else None
    if (run_folder / "model" / "adapter_config.json").is_file():
        net = _load_adapter(load(prepared.location, prepared.plan.model), run_folder / "model")
        return net, (lambda: save.base_model(net)) if reads_base else None
    settings = {**prepared.plan.model, "path": str(run_folder / "model"), "revision": None}
    net = load(locate.resolve_model(settings, progress=create_progress(registry)), settings)
    if not reads_base:
        return net, None
    untouched = load(continue_run.original_base(spec, prepared, create_progress(registry)), prepared.plan.model)
    return net, lambda: nullcontext(untouched)


def _load_adapter(model: Any, folder: Path) -> Any:
    from peft import PeftModel
    from safetensors import SafetensorError

    try:
        return PeftModel.from_pretrained(model, str(folder)).eval()
    except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as error:
        what = f"the adapter cannot be put on the model ({type(error).__name__}: {error})"
        raise HarnessError(str(folder), what, "bring back the base model that the run began with") from error


def _create_arm_runner(registry: Registry, processes: Processes) -> arms_runner.RunArm:
    def run_arm(arm: Arm, own: Spec, place: Path, again: bool, parent: str | None, shared: int) -> None:
        ready = prepare_run(own, registry, processes=processes)
        found = analyze_prepared_data(own, ready, registry)
        raise_all(found.failures)
        folder = RunFolder(place)
        with folder.locked():
            facts = {"name": arm.name, "changes": dict(arm.changes)}
            run_stages(
                own,
                registry,
                ready,
                found,
                folder,
                resuming=again,
                arm=facts,
                parent=parent,
                stages_to_keep=shared,
                processes=processes,
            )

    return run_arm
