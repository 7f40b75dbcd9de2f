"""A run that has its report, and was killed before all else was done: the page, the disk given back, the end in MLflow.

Loads no model: what listeners are told of such a run is read from its folder, and its report is made again from its
answers, which gives the same numbers.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from harness.errors import HarnessError
from harness.evaluation import rescore
from harness.evaluation import scoring as scoring_module
from harness.registry import Registry
from harness.report import run_report
from harness.report.finished_run import PreviousRun, load_run_json
from harness.report.html import write
from harness.report.run_report import Report
from harness.runner import continue_run
from harness.runner.folder import RunFolder
from harness.runner.main_process import tracking_session
from harness.runner.prepare import write_report_page
from harness.spec import plan, preflight
from harness.spec.spec import Spec
from harness.tracking.mlflow_store import tracking_status
from harness.training import train_stage
from harness.types import Evaluation, Event, Plan
from harness.utils.find_run import RUN_SCHEME, find_run

EvaluationsByStage = tuple[tuple[Evaluation, ...], ...]


def finish_interrupted_run(
    spec: Spec,
    registry: Registry,
    folder: RunFolder,
    *,
    arm: Mapping[str, Any] | None = None,
    parent: str | None = None,
) -> Report | None:
    """Do what a finished run still lacks, and return its report; None where nothing is lacking.

    spec: the run's own. arm, parent: see `main_process.run_stages`; the ends of an arm's stages stay, for they are the
    experiment's to clear. A run that failed after its report, by a limit of its suites, stays failed. Raises
    HarnessError when the folder is damaged or the tracking store cannot be asked, and RunError where the run itself
    would have failed.
    """
    lacking = []
    if not (folder.path / "report.html").is_file():
        write_report_page(registry, write.write_run_page, folder.path)
        if (folder.path / "report.html").is_file():  # else it has been said why not
            lacking.append("page")
    for end in folder.path.glob("stages/*/end") if arm is None else ():
        shutil.rmtree(end)
        lacking.append("disk")
    stands = tracking_status(spec.document["track"], folder.read_json("mlflow.json"))
    if not lacking and stands in (None, "FINISHED"):
        return None
    planned = plan.build_plan(spec, registry)
    evaluations = _load_evaluations(folder.path, planned, registry)
    broken = any(one.violations for stage in evaluations[1:] for one in stage)
    if not lacking and broken and stands == "FAILED":
        return None
    made = _build_report(spec, planned, registry, folder, evaluations)
    if stands not in (None, "FINISHED") and not (broken and stands == "FAILED"):
        lacking.append("tracking")
        # The machine is not watched any more: the run was over when it was killed.
        settings = {**spec.document["track"], "system_metrics": False}
        with tracking_session(settings, planned.name, registry, folder, resuming=True, parent=parent):
            _emit_past_events(spec, planned, registry, folder, evaluations, made, arm)
            scoring_module.raise_on_violations([one for stage in evaluations for one in stage], first_stage=1)
    facts = {"folder": str(folder.path), "lacked": tuple(dict.fromkeys(lacking)), "report": made}
    registry.emit(Event("run_closed", data=facts))
    return made


def _load_evaluations(folder: Path, plan: Plan, registry: Registry) -> EvaluationsByStage:
    """What the run measured, one tuple a stage, the base first, with its items, by the answers that it kept."""
    found = rescore.score_run(folder, None, registry) if plan.suites else ()
    return tuple(tuple(one for one in found if one.stage == stage) for stage in range(len(plan.stages) + 1))


def _build_report(
    spec: Spec,
    plan: Plan,
    registry: Registry,
    folder: RunFolder,
    evaluations: EvaluationsByStage,
) -> Report:
    earlier: PreviousRun | None = None
    path, output = plan.model["path"], spec.document["output"]
    if path.startswith(RUN_SCHEME):
        before = find_run(path.removeprefix(RUN_SCHEME), output).resolve()
        earlier, _ = continue_run.carry_over_scores(before, evaluations[0], output)
    return run_report.build_report(
        plan,
        evaluations,
        preflight.create_metrics(plan, registry),
        seed=plan.seed,
        run_info=load_run_json(folder.path, "report.json")["run"],
        gate_conditions=spec.document["gate"],
        previous_run=earlier,
    )


def _emit_past_events(
    spec: Spec,
    plan: Plan,
    registry: Registry,
    folder: RunFolder,
    evaluations: EvaluationsByStage,
    report: Report,
    arm: Mapping[str, Any] | None,
) -> None:
    """All that happened in the run, told again from its folder; a listener that was gone on with knows what it has."""

    def tell(kind: str, number: int = 0, /, **facts: Any) -> None:
        registry.emit(Event(kind, number, facts))

    place = folder.path
    named = {"name": plan.name, "id": place.name, "folder": str(place), "spec": spec.document, "plan": plan}
    tell("run_started", **named, environment=load_run_json(place, "environment.json"), again=True, arm=arm)
    tell("data", **{**load_run_json(place, "data.json"), "stages": plan.stages})
    tell("evaluated", 0, evaluations=evaluations[0])
    for number, stage in enumerate(plan.stages, start=1):
        kept = place / "stages" / stage.name
        try:
            trained = train_stage.StageResult.from_totals(load_run_json(kept, "trained.json"))
        except ValueError as error:
            what = "was written by another version"
            raise HarnessError(str(kept / "trained.json"), what, "use the version that wrote it") from error
        tell("stage_started", number, stage=stage, steps=trained.steps, again=True)
        tell("evaluated", number, evaluations=evaluations[number])
        tell("stage_finished", number, stage=stage, trained=trained, folder=str(place))
    tell("run_finished", len(plan.stages), report=report, seconds=report.run_info.get("seconds"))
