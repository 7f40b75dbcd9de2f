"""Completion of a run that was killed after its report: report.html, stage snapshots, and the end of its MLflow run.

Loads no model. The events are rebuilt from the run's folder, and the report from the stored answers, with the same
numbers.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from harness.evaluation import scoring
from harness.events import InterruptedRunCompleted, RunFinished
from harness.registry import Registry
from harness.report.run_report import Report
from harness.runner import resume
from harness.runner.bounded_plan import build_bounded_plan
from harness.runner.folder import RunFolder
from harness.runner.prepare import write_report_page
from harness.runner.replay import StoredRun
from harness.runner.report_page import write_run_page
from harness.runner.trackers import mlflow_settings
from harness.runner.tracking_session import tracking_session
from harness.spec.spec import Spec
from harness.tracking.run_status import tracking_status
from harness.types import Plan


def finish_interrupted_run(
    spec: Spec,
    registry: Registry,
    folder: RunFolder,
    *,
    plan: Plan | None = None,
    arm: Mapping[str, Any] | None = None,
    parent: str | None = None,
    tracked: bool = True,
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
        tracked: Whether MLflow is used, if the spec enables it.

    Returns:
        The report; None if nothing was missing.

    Raises:
        HarnessError: If the folder is damaged or the tracking store does not answer.
        RunError: If a suite violates its limits and the MLflow run was not ended for it.
    """
    completed = resume.complete_result_files(
        folder.path,
        is_arm=arm is not None,
        write_page=lambda: write_report_page(registry, partial(write_run_page, registry), folder.path),
    )
    settings = mlflow_settings(spec.document["track"], registry)
    status = tracking_status(settings, resume.tracking_info(folder)) if tracked else None
    if not completed and not resume.needs_tracking_end(status, violates_limits=False):
        return None
    plan = build_bounded_plan(spec, registry) if plan is None else plan
    run = StoredRun(spec, plan, folder.path, arm)
    evaluations = run.load_evaluations(registry)
    violates_limits = any(evaluation.violations for stage in evaluations[1:] for evaluation in stage)
    needs_tracking_end = resume.needs_tracking_end(status, violates_limits=violates_limits)
    if not completed and not needs_tracking_end:
        return None
    report = run.build_report(registry, evaluations)
    if needs_tracking_end:
        completed.append("tracking")
        # The run ended when it was killed: the system metrics of now are not its own.
        settings = {**settings, "system_metrics": False}
        with tracking_session(settings, plan.name, registry, folder, resuming=True, parent=parent):
            for event in (*run.start_events(), *run.stage_events(evaluations)):
                registry.emit(event)
            registry.emit(
                RunFinished(stage_index=len(plan.stages), report=report, seconds=report.run_info.get("seconds"))
            )
            scoring.raise_on_violations([each for stage in evaluations for each in stage], first_stage=1)
    registry.emit(
        InterruptedRunCompleted(folder=str(folder.path), completed=tuple(dict.fromkeys(completed)), report=report)
    )
    return report
