"""The arms of an experiment: variants of one spec that run in one folder, and their comparison.

They run one after the other in this process, or side by side in processes that Ray starts (`parallel_arms`). Arms share
what is expensive:

- tokenized rows: the token cache is keyed by their content;
- answers of the base model: they are copied from a finished arm and reused if their keys match;
- first stages that several arms have in common: `shared_stages` links their snapshots.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.distributed.processes import SINGLE_PROCESS, Processes
from harness.errors import RunError
from harness.events import ArmsFinished, ArmStarted, WarningRaised
from harness.model.bfloat16_speed import bfloat16_recommendation
from harness.registry import Registry
from harness.report import finished_run
from harness.report.arm_comparison import NOT_FINISHED, ArmComparison, ComparisonSettings, compare_arms
from harness.report.html import write
from harness.runner import resume
from harness.runner.arm_run import ArmContext, ArmRun, arm_metadata, emit_arm_end, run_arm
from harness.runner.error_file import error_file, write_error
from harness.runner.folder import RunFolder
from harness.runner.parallel_arms import Cluster, run_side_by_side
from harness.runner.prepare import write_report_page
from harness.runner.prepare_arms import iter_prepared_arms
from harness.runner.shared_stages import delete_snapshots, find_shared_stages
from harness.runner.trackers import mlflow_settings
from harness.runner.tracking_session import emit_tracking_start
from harness.spec import arms as arms_of
from harness.spec.arms import Arm
from harness.spec.metric_factory import create_metrics_of_specs
from harness.spec.spec import Spec
from harness.tracking.experiment_tracker import ExperimentTracker
from harness.utils.shell_commands import resume_command

MAX_PREPARED_ARMS = 8
"""Arms whose prepared data is kept until they run. Later ones are prepared again, from the token cache: each holds a
tokenizer and the conversations of its sources."""


def prepare_arm_runs(
    arm_specs: Sequence[tuple[Arm, Spec]],
    registry: Registry,
    processes: Processes = SINGLE_PROCESS,
    *,
    keep_data: bool = True,
) -> Iterator[ArmRun]:
    """Prepare and check the data of every arm.

    Args:
        arm_specs: The arms with their specs.
        registry: The components.
        processes: The processes that will train: a step takes rows for each of them.
        keep_data: Whether the arms run in this process, which then keeps the prepared data of some.

    Yields:
        Each arm; with `keep_data` the first `MAX_PREPARED_ARMS` with their prepared data.

    Raises:
        HarnessError: If an arm is invalid; the error names the arm.
    """
    for number, (arm, arm_spec, prepared) in enumerate(iter_prepared_arms(arm_specs, registry, processes), start=1):
        # All arms write their invalid rows to the same file, so such an arm is prepared again just before it runs.
        has_invalid_rows = any(source.corpus.invalid_rows_file for source in prepared.data.sources.values())
        keeps_this = keep_data and number <= MAX_PREPARED_ARMS and not has_invalid_rows
        yield ArmRun(arm, arm_spec, prepared.plan, prepared if keeps_this else None, is_checked=True)


@dataclass(frozen=True)
class ExperimentContext:
    """One experiment.

    Attributes:
        spec: The spec with its arms.
        registry: The components and listeners.
        folder: The folder of the experiment.
        tracker: The MLflow tracker of the experiment.
    """

    spec: Spec
    registry: Registry
    folder: RunFolder
    tracker: ExperimentTracker

    @property
    def arms_folder(self) -> Path:
        """The folder that holds the folders of the arms."""
        return self.folder.path / "arms"

    def arm_context(self, processes: Processes) -> ArmContext:
        """Return what every arm needs to run."""
        is_tracked = self.tracker.uri is not None
        return ArmContext(self.registry, self.arms_folder, self.tracker.run_id, is_tracked, processes)


def run_arms(
    spec: Spec,
    arm_runs: Sequence[ArmRun],
    registry: Registry,
    folder: RunFolder,
    *,
    processes: Processes = SINGLE_PROCESS,
    cluster: Cluster | None = None,
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
        cluster: Where the arms run side by side; None to run them one after the other in this process.

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
    context = ExperimentContext(spec, registry, folder, tracker)
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
            if cluster is None:
                failures = _run_in_turn(context, arm_runs, processes)
            else:
                failures = run_side_by_side(context.arm_context(processes), arm_runs, cluster)
            delete_snapshots(context.arms_folder)
            return _report_comparison(context, all_arms, failures)
    except BaseException as error:
        tracker.fail(error)
        raise


def _run_in_turn(context: ExperimentContext, arm_runs: Sequence[ArmRun], processes: Processes) -> dict[str, str]:
    """Run arms one after the other. Returns arm -> why it failed."""
    plans = {arm_run.arm.name: arm_run.plan for arm_run in arm_runs}
    failures: dict[str, str] = {}
    for number, arm_run in enumerate(arm_runs, start=1):
        name = arm_run.arm.name
        context.registry.emit(ArmStarted(arm=name, number=number, of=len(arm_runs)))
        outcome = run_arm(context.arm_context(processes), arm_run, find_shared_stages(plans, name, context.registry))
        emit_arm_end(context.registry, name, outcome)
        if outcome.failure is not None:
            failures[name] = outcome.failure
    return failures


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
            missing.setdefault(arm.name, NOT_FINISHED)
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


def _failure_error(failures: Mapping[str, str], folder: RunFolder) -> RunError | None:
    if not failures:
        return None
    first = next(iter(failures))
    hint = f"fix the cause, then: {resume_command(folder.path)}"
    return RunError(str(folder.path), f"{len(failures)} arm(s) failed, {first!r} first: {failures[first]}", hint)
