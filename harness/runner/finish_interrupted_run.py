"""Completion of a run that was killed after its report: report.html, stage snapshots, and the end of its MLflow run.

Loads no model. The events are rebuilt from the run's folder, and the report from the stored answers, with the same
numbers.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from harness.errors import HarnessError
from harness.evaluation import rescore
from harness.evaluation import scoring as scoring_module
from harness.events import (
    DataPrepared,
    InterruptedRunCompleted,
    RunFinished,
    RunStarted,
    StageFinished,
    StageStarted,
    SuitesEvaluated,
)
from harness.registry import Registry
from harness.report import run_report
from harness.report.finished_run import PreviousRun, load_run_json
from harness.report.html import write
from harness.report.run_report import Report
from harness.runner import continue_run, resume
from harness.runner.bounded_plan import build_bounded_plan
from harness.runner.folder import RunFolder
from harness.runner.prepare import write_report_page
from harness.runner.tracking_session import tracking_session
from harness.spec import preflight
from harness.spec.spec import Spec
from harness.tracking.mlflow_store import tracking_status
from harness.training import train_stage
from harness.types import Evaluation, Plan
from harness.utils.find_run import RUN_SCHEME, find_run

EvaluationsByStage = tuple[tuple[Evaluation, ...], ...]
"""The evaluations before the first stage and after each stage."""


def finish_interrupted_run(
    spec: Spec,
    registry: Registry,
    folder: RunFolder,
    *,
    plan: Plan | None = None,
    arm: Mapping[str, Any] | None = None,
    parent: str | None = None,
) -> Report | None:
    """Complete what a finished run lacks.

    A run that failed after its report, because a suite violates its limits, stays failed.

    Args:
        spec: The spec of the run.
        registry: The components and listeners.
        folder: The folder of the run.
        plan: The plan of the spec, if it is built already.
        arm: `name` and `changes` of the experiment's arm; the experiment deletes the snapshots of its stages.
        parent: MLflow id of the experiment's run.

    Returns:
        The report; None if nothing was missing.

    Raises:
        HarnessError: If the folder is damaged or the tracking store does not answer.
        RunError: If a suite violates its limits and the MLflow run was not ended for it.
    """
    completed = resume.complete_result_files(
        folder.path,
        is_arm=arm is not None,
        write_page=lambda: write_report_page(registry, write.write_run_page, folder.path),
    )
    status = tracking_status(spec.document["track"], resume.tracking_info(folder))
    if not completed and not resume.needs_tracking_end(status, violates_limits=False):
        return None
    plan = build_bounded_plan(spec, registry) if plan is None else plan
    evaluations = _load_evaluations(folder.path, plan, registry)
    violates_limits = any(evaluation.violations for stage in evaluations[1:] for evaluation in stage)
    needs_tracking_end = resume.needs_tracking_end(status, violates_limits=violates_limits)
    if not completed and not needs_tracking_end:
        return None
    report = _build_report(spec, plan, registry, folder, evaluations)
    if needs_tracking_end:
        completed.append("tracking")
        # The run ended when it was killed: the system metrics of now are not its own.
        settings = {**spec.document["track"], "system_metrics": False}
        with tracking_session(settings, plan.name, registry, folder, resuming=True, parent=parent):
            _emit_run_start(spec, plan, registry, folder.path, arm)
            _emit_stages(plan, registry, folder.path, evaluations)
            registry.emit(
                RunFinished(stage_index=len(plan.stages), report=report, seconds=report.run_info.get("seconds"))
            )
            scoring_module.raise_on_violations(
                [evaluation for stage in evaluations for evaluation in stage], first_stage=1
            )
    registry.emit(
        InterruptedRunCompleted(folder=str(folder.path), completed=tuple(dict.fromkeys(completed)), report=report)
    )
    return report


def _load_evaluations(run_folder: Path, plan: Plan, registry: Registry) -> EvaluationsByStage:
    """Score the stored answers of every stage."""
    evaluations = rescore.score_run(run_folder, None, registry) if plan.suites else ()
    return tuple(
        tuple(evaluation for evaluation in evaluations if evaluation.stage == stage_index)
        for stage_index in range(len(plan.stages) + 1)
    )


def _build_report(
    spec: Spec,
    plan: Plan,
    registry: Registry,
    folder: RunFolder,
    evaluations: EvaluationsByStage,
) -> Report:
    previous_run: PreviousRun | None = None
    path, output = plan.model["path"], spec.document["output"]
    if path.startswith(RUN_SCHEME):
        previous_folder = find_run(path.removeprefix(RUN_SCHEME), output).resolve()
        previous_run, _ = continue_run.carry_over_scores(previous_folder, evaluations[0], output)
    return run_report.build_report(
        plan,
        evaluations,
        preflight.create_metrics(plan, registry),
        seed=plan.seed,
        run_info=load_run_json(folder.path, "report.json")["run"],
        gate_conditions=spec.document["gate"],
        previous_run=previous_run,
    )


def _emit_run_start(
    spec: Spec, plan: Plan, registry: Registry, run_folder: Path, arm: Mapping[str, Any] | None
) -> None:
    registry.emit(
        RunStarted(
            name=plan.name,
            id=run_folder.name,
            folder=str(run_folder),
            spec=spec.document,
            plan=plan,
            environment=load_run_json(run_folder, "environment.json"),
            resuming=True,
            arm=arm,
            changed=spec.changed,
        )
    )
    data = {**load_run_json(run_folder, "data.json"), "stages": plan.stages}
    known_fields = {field.name for field in dataclasses.fields(DataPrepared)}
    registry.emit(DataPrepared(**{name: value for name, value in data.items() if name in known_fields}))


def _emit_stages(plan: Plan, registry: Registry, run_folder: Path, evaluations: EvaluationsByStage) -> None:
    """Emit the evaluations and the totals of every stage; the tracker reads the steps from the folder itself."""
    registry.emit(SuitesEvaluated(evaluations=evaluations[0]))
    for stage_index, stage in enumerate(plan.stages, start=1):
        stage_folder = run_folder / "stages" / stage.name
        try:
            result = train_stage.StageResult.from_totals(load_run_json(stage_folder, "trained.json"))
        except ValueError as error:
            what = "was written by another version of harness"
            raise HarnessError(str(stage_folder / "trained.json"), what, "resume with that version") from error
        registry.emit(StageStarted(stage_index=stage_index, stage=stage, steps=result.steps, reused=True))
        registry.emit(SuitesEvaluated(stage_index=stage_index, evaluations=evaluations[stage_index]))
        registry.emit(StageFinished(stage_index=stage_index, stage=stage, trained=result, folder=str(run_folder)))
