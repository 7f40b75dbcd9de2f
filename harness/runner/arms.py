"""The arms of an experiment: variants of one spec, run one after the other in one folder, and compared.

Arms share what is expensive:

- tokenized rows: the token cache is keyed by their content;
- answers of the base model: they are copied from an earlier arm and reused if their keys match;
- first stages that several arms have in common: `reuse_stages` links their snapshots.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.distributed.processes import SINGLE_PROCESS, Processes
from harness.errors import HarnessError, RunError
from harness.evaluation.predictions import stored_files
from harness.events import ArmFinished, ArmPrepared, ArmPreparing, ArmsFinished, ArmsPrepared, ArmStarted, WarningRaised
from harness.interfaces.mitigation import Mitigation
from harness.interfaces.mode import Mode
from harness.model.bfloat16_speed import bfloat16_recommendation
from harness.registry import Registry
from harness.report import finished_run
from harness.report.arm_comparison import ArmComparison, ComparisonSettings, compare_arms
from harness.report.html import write
from harness.runner import resume
from harness.runner.bounded_plan import build_bounded_plan
from harness.runner.context import RunContext
from harness.runner.error_file import error_file, write_error
from harness.runner.finish_interrupted_run import finish_interrupted_run
from harness.runner.folder import RunFolder
from harness.runner.prepare import PreparedRun, prepare_checked_run, write_report_page
from harness.runner.run_stages import run_stages
from harness.runner.trackers import mlflow_settings
from harness.runner.tracking_session import emit_tracking_start
from harness.spec import arms as arms_of
from harness.spec import plan as plan_module
from harness.spec.arms import Arm
from harness.spec.metric_factory import create_metrics_of_specs
from harness.spec.spec import Spec
from harness.tracking.experiment_tracker import ExperimentTracker
from harness.training.stage_schedule import evaluates_within
from harness.types import Plan, Stage
from harness.utils.shell_commands import resume_command

MAX_PREPARED_ARMS = 8
"""Arms whose prepared data is kept until they run. Later ones are prepared again, from the token cache: each holds a
tokenizer and the conversations of its sources."""


# -- preparation ------------------------------------------------------------------------------------------------------


@dataclass
class ArmRun:
    """An arm that is to run.

    Attributes:
        arm: Its name and changes.
        spec: The spec with its changes.
        plan: The plan of that spec.
        prepared: Its prepared data; None to prepare it when it runs.
    """

    arm: Arm
    spec: Spec
    plan: Plan
    prepared: PreparedRun | None = None

    def take_prepared(self, registry: Registry, processes: Processes) -> PreparedRun:
        """Return the prepared data, and release it here so that it is freed when the arm has run."""
        prepared, self.prepared = self.prepared, None
        return prepared or prepare_checked_run(self.spec, registry, plan=self.plan, processes=processes)


def plan_arms(arm_specs: Sequence[tuple[Arm, Spec]], registry: Registry) -> list[ArmRun]:
    """Plan every arm, without preparing its data."""
    return [ArmRun(arm, arm_spec, build_bounded_plan(arm_spec, registry)) for arm, arm_spec in arm_specs]


def prepare_arms(
    arm_specs: Sequence[tuple[Arm, Spec]], registry: Registry, processes: Processes = SINGLE_PROCESS
) -> Iterator[ArmRun]:
    """Prepare and check the data of every arm.

    Args:
        arm_specs: The arms with their specs.
        registry: The components.
        processes: The processes that will train: a step takes rows for each of them.

    Yields:
        Each arm; the first `MAX_PREPARED_ARMS` with their prepared data.

    Raises:
        HarnessError: If an arm is invalid; the error names the arm.
    """
    for number, (arm, arm_spec) in enumerate(arm_specs, start=1):
        registry.emit(ArmPreparing(arm=arm.name, number=number, of=len(arm_specs), method=arm.method))
        started_at = time.monotonic()
        with arms_of.arm_error_context(arm):
            prepared = prepare_checked_run(arm_spec, registry, processes=processes)
        counts = prepared.data.counts.values()
        registry.emit(
            ArmPrepared(
                arm=arm.name,
                number=number,
                of=len(arm_specs),
                used=sum(count.get("used", 0) for count in counts),
                evaluated=sum(count.get("evaluated", 0) for count in counts),
                seconds=time.monotonic() - started_at,
            )
        )
        # All arms write their invalid rows to the same file, so such an arm is prepared again just before it runs.
        has_invalid_rows = any(source.corpus.invalid_rows_file for source in prepared.data.sources.values())
        keeps_data = number <= MAX_PREPARED_ARMS and not has_invalid_rows
        yield ArmRun(arm, arm_spec, prepared.plan, prepared if keeps_data else None)
    registry.emit(ArmsPrepared())


# -- stages that arms share -------------------------------------------------------------------------------------------


def shared_stage_count(first: Plan, second: Plan, registry: Registry) -> int:
    """Return how many first stages two plans have in common, so that one snapshot serves both.

    A stage with `evaluate_steps` counts only if the suites are equal too: their scores may end or change it. A stage
    whose mitigations offer weight variants never counts: the variants depend on what the mitigation remembers.
    """
    if (first.seed, first.model, first.template, first.sources) != (
        second.seed, second.model, second.template, second.sources,
    ):  # fmt: skip
        return 0
    if first.mode != second.mode and any(_chooses_rows(plan, registry) for plan in (first, second)):
        return 0
    count = 0
    for first_stage, second_stage in zip(first.stages, second.stages, strict=False):
        if (
            first_stage != second_stage
            or plan_module.stage_mitigations(first, first_stage) != plan_module.stage_mitigations(second, second_stage)
            or _offers_variants(first, first_stage, registry)
        ):
            break
        if evaluates_within(first_stage.train) and first.suites != second.suites:
            break
        count += 1
    return count


def _chooses_rows(plan: Plan, registry: Registry) -> bool:
    """Return whether the mode selects or orders rows, which its stages do not show."""
    mode = type(registry.create("modes", *plan.mode))
    return mode.select is not Mode.select or mode.order is not Mode.order


def reuse_stages(
    arms_folder: Path, arm_folder: Path, plan: Plan, others: Iterable[tuple[str, Plan]], registry: Registry
) -> int:
    """Copy the snapshots of first stages that an earlier arm has trained to the folder of a new arm.

    Large files are hard links where the file system supports them.

    Args:
        arms_folder: The folder that holds all arms.
        arm_folder: The folder of the new arm.
        plan: The plan of the new arm.
        others: Name and plan of each earlier arm.
        registry: The components.

    Returns:
        The number of stages that were copied.
    """
    best_count, donor = 0, arms_folder
    for name, other in others:
        count = shared_stage_count(plan, other, registry)
        has_snapshot = [(arms_folder / name / "stages" / stage.name / "end").is_dir() for stage in plan.stages[:count]]
        count = has_snapshot.index(False) if False in has_snapshot else count
        if count > best_count:
            best_count, donor = count, arms_folder / name
    for stage_index, stage in enumerate(plan.stages[:best_count], start=1):
        target, source = arm_folder / "stages" / stage.name, donor / "stages" / stage.name
        shutil.rmtree(target, ignore_errors=True)  # a copy that was interrupted
        shutil.copytree(source / "end", target / "end", copy_function=_link_or_copy)
        for file_name in ("trained.json", "steps.jsonl", "evaluations.jsonl"):
            if (source / file_name).is_file():  # only a stage with `evaluate_steps` has evaluations
                shutil.copy2(source / file_name, target / file_name)
        for folder_name in ("evaluations", "written"):
            if (source / folder_name).is_dir():
                shutil.copytree(source / folder_name, target / folder_name, copy_function=_link_or_copy)
        (arm_folder / "predictions").mkdir(parents=True, exist_ok=True)
        for file in stored_files(donor / "predictions", stage_index):
            shutil.copy2(file, arm_folder / "predictions" / file.name)
    return best_count


def delete_snapshots(arms_folder: Path) -> None:
    """Delete the stage snapshots of finished arms; an unfinished arm needs its own to be resumed."""
    for arm_folder in arms_folder.iterdir():
        if resume.is_finished(arm_folder):
            for snapshot in arm_folder.glob("stages/*/end"):
                shutil.rmtree(snapshot, ignore_errors=True)


def _offers_variants(plan: Plan, stage: Stage, registry: Registry) -> bool:
    mitigations = plan_module.create_mitigations(plan_module.stage_mitigations(plan, stage), registry)
    return any(type(mitigation).variants is not Mitigation.variants for _, mitigation in mitigations)


def _link_or_copy(source: str, target: str) -> str:
    with contextlib.suppress(OSError):
        os.link(source, target)
        return target
    return shutil.copy2(source, target)


def _copy_base_predictions(arms_folder: Path, arm_folder: Path) -> None:
    """Copy the base model's answers of a finished arm; their keys decide whether they are reused."""
    for predictions in sorted(arms_folder.glob("*/predictions")):
        files = stored_files(predictions, 0)
        if files and resume.is_finished(predictions.parent):
            (arm_folder / "predictions").mkdir(parents=True, exist_ok=True)
            for file in files:
                shutil.copy2(file, arm_folder / "predictions" / file.name)
            return


# -- the experiment ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ExperimentContext:
    """One experiment.

    Attributes:
        spec: The spec with its arms.
        registry: The components and listeners.
        folder: The folder of the experiment.
        tracker: The MLflow tracker of the experiment.
        processes: The processes that share each run.
    """

    spec: Spec
    registry: Registry
    folder: RunFolder
    tracker: ExperimentTracker
    processes: Processes

    @property
    def arms_folder(self) -> Path:
        """The folder that holds the folders of the arms."""
        return self.folder.path / "arms"


def run_arms(
    spec: Spec,
    arm_runs: Sequence[ArmRun],
    registry: Registry,
    folder: RunFolder,
    *,
    processes: Processes = SINGLE_PROCESS,
) -> ArmComparison:
    """Run every arm that has no result yet, and compare all arms that have one.

    An arm that fails is listed in the comparison and the next arm runs. With several processes the first arm that
    fails ends the experiment: the other processes cannot know where it failed.

    Args:
        spec: The spec with its arms.
        arm_runs: The arms to run.
        registry: The components and listeners.
        folder: The folder of the experiment.
        processes: The processes that share each run.

    Raises:
        RunError: If an arm failed, after all results are saved.
    """
    all_arms = arms_of.expand_arms(spec.document["arms"], spec.where(("arms",)))
    tracker = ExperimentTracker(
        mlflow_settings(spec.document["track"], registry),
        spec.document["name"],
        folder.path,
        lambda text: registry.emit(WarningRaised(text=text)),
        resume_info=resume.tracking_info(folder),
    )
    context = ExperimentContext(spec, registry, folder, tracker, processes)
    tracker.start(spec.document, [arm_metadata(arm) for arm in all_arms], spec.changed)
    emit_tracking_start(registry, tracker.pages)
    recommendations = [bfloat16_recommendation(arm_run.plan.train["precision"]) for arm_run in arm_runs]
    for text in dict.fromkeys(filter(None, recommendations)):
        registry.emit(WarningRaised(text=text))
    try:
        with (
            processes.on_abort(tracker.fail),
            processes.on_abort(lambda error: write_error(folder.path, error)),
            error_file(folder.path),
        ):
            failures: dict[str, str] = {}
            for index, arm_run in enumerate(arm_runs):
                registry.emit(ArmStarted(arm=arm_run.arm.name, number=index + 1, of=len(arm_runs)))
                reason = _run_arm(context, arm_runs, index)
                if reason is not None:
                    failures[arm_run.arm.name] = reason
            delete_snapshots(context.arms_folder)
            return _report_comparison(context, all_arms, failures)
    except BaseException as error:
        tracker.fail(error)
        raise


def _run_arm(context: ExperimentContext, arm_runs: Sequence[ArmRun], index: int) -> str | None:
    """Run an arm, resume it, or complete its result. Returns why it failed; None if it has a result."""
    arm_run, registry = arm_runs[index], context.registry
    arm, plan, arm_folder = arm_run.arm, arm_run.plan, context.arms_folder / arm_run.arm.name
    if resume.is_finished(arm_folder):
        reason = _finish_interrupted_arm(context, arm_run, arm_folder)
        registry.emit(ArmFinished(arm=arm.name, reused=True))
        return reason
    resuming = resume.is_started(arm_folder)
    if not resuming:
        _copy_base_predictions(context.arms_folder, arm_folder)
        earlier_plans = [(earlier.arm.name, earlier.plan) for earlier in arm_runs[:index]]
        reuse_stages(context.arms_folder, arm_folder, plan, earlier_plans, registry)
    shared_counts = [shared_stage_count(plan, later.plan, registry) for later in arm_runs[index + 1 :]]
    try:
        prepared = arm_run.take_prepared(registry, context.processes)
        folder = RunFolder(arm_folder)
        with folder.locked():
            run_stages(
                RunContext(
                    arm_run.spec,
                    registry,
                    prepared,
                    folder,
                    processes=context.processes,
                    resuming=resuming,
                    arm=arm_metadata(arm),
                    parent=context.tracker.run_id,
                    tracked=context.tracker.uri is not None,
                    stages_to_keep=max(shared_counts, default=0),
                )
            )
    except HarnessError as error:  # spec and data were checked, so the failure concerns this arm alone
        if context.processes.world_size > 1:
            raise
        registry.emit(WarningRaised(text=f"the arm {arm.name!r} failed: {error}"))
        return error.what
    registry.emit(ArmFinished(arm=arm.name, reused=False))
    return None


def _finish_interrupted_arm(context: ExperimentContext, arm_run: ArmRun, arm_folder: Path) -> str | None:
    """Complete an arm that was killed after its report. Returns why it failed; None if it did not."""
    folder = RunFolder(arm_folder)
    try:
        with folder.locked():
            finish_interrupted_run(
                arm_run.spec,
                context.registry,
                folder,
                plan=arm_run.plan,
                arm=arm_metadata(arm_run.arm),
                parent=context.tracker.run_id,
                tracked=context.tracker.uri is not None,
            )
    except RunError as error:
        return error.what
    except HarnessError as error:  # the result exists, and is compared
        text = f"cannot complete the arm {arm_run.arm.name!r}: {error}"
        context.registry.emit(WarningRaised(text=text))
    return None


def _report_comparison(context: ExperimentContext, arms: Sequence[Arm], failures: Mapping[str, str]) -> ArmComparison:
    """Write the comparison of the arms and end the MLflow run. Raises RunError if an arm failed."""
    failure = _failure_error(failures, context.folder)
    if failure is not None and not any(resume.is_finished(context.arms_folder / arm.name) for arm in arms):
        raise failure  # there is nothing to compare
    comparison = compare_finished_arms(context.spec, arms, context.registry, context.folder.path, failures)
    comparison.write(context.folder.path)
    write_report_page(context.registry, write.write_experiment_page, context.folder.path)
    if failure is None:
        context.tracker.finish(comparison)
    pages = context.tracker.pages
    context.registry.emit(
        ArmsFinished(
            experiment=comparison,
            folder=str(context.folder.path),
            view=None if pages is None else pages.view,
            view_command=None if pages is None else pages.command,
        )
    )
    if failure is not None:
        raise failure
    return comparison


def compare_finished_arms(
    spec: Spec, arms: Sequence[Arm], registry: Registry, folder: Path, failures: Mapping[str, str]
) -> ArmComparison:
    """Compare all arms of an experiment that have a result.

    Args:
        spec: The spec with its arms.
        arms: All arms.
        registry: The components.
        folder: The folder of the experiment.
        failures: Arm -> why it failed.
    """
    runs: dict[str, dict[int, finished_run.FinishedRun]] = {arm.method: {} for arm in arms}
    missing = dict(failures)
    for arm in arms:
        arm_folder = folder / "arms" / arm.name
        if resume.is_finished(arm_folder):
            run = finished_run.load_finished_run(arm_folder)
            runs[arm.method][int(run.spec["seed"])] = run
        else:
            missing.setdefault(arm.name, "the arm is not finished")
    settings: dict[str, Any] = spec.document["arms"]
    controls = arms_of.baseline_names(settings)
    baseline = controls[0] if controls else None
    ordered = sorted(runs.items(), key=lambda item: item[0] != baseline)
    specs = [run.spec for _, by_seed in ordered for run in by_seed.values()]
    return compare_arms(
        spec.document["name"],
        folder,
        runs,
        create_metrics_of_specs(registry, specs),
        ComparisonSettings(
            baseline,
            controls,
            settings["gain"],
            settings["forgetting"],
            settings["joint"],
            settings["gain_margin"],
            settings["forgetting_margin"],
            spec.document["gate"],
            settings["gate"],
        ),
        seed=spec.document["seed"],
        missing=missing,
    )


def arm_metadata(arm: Arm) -> dict[str, Any]:
    """Return what events and the tracker know about an arm."""
    return {"name": arm.name, "method": arm.method, "changes": dict(arm.changes)}


def _failure_error(failures: Mapping[str, str], folder: RunFolder) -> RunError | None:
    if not failures:
        return None
    first = next(iter(failures))
    hint = f"fix the cause, then: {resume_command(folder.path)}"
    return RunError(str(folder.path), f"{len(failures)} arm(s) failed, {first!r} first: {failures[first]}", hint)
