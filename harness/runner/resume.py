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
from harness.report.finished_run import Earlier, document
from harness.report.html import write
from harness.report.run_report import Report
from harness.runner import continue_run
from harness.runner.folder import RunFolder
from harness.runner.main_process import tracked
from harness.runner.prepare import page
from harness.spec import plan, preflight
from harness.spec.spec import Spec
from harness.tracking.mlflow_store import status
from harness.training import train_stage
from harness.types import Evaluation, Event, Plan
from harness.utils.find_run import SCHEME, find_run

Stages = tuple[tuple[Evaluation, ...], ...]


def close(
    spec: Spec,
    registry: Registry,
    folder: RunFolder,
    *,
    arm: Mapping[str, Any] | None = None,
    parent: str | None = None,
) -> Report | None:
    """Do what a finished run still lacks, and return its report; None where nothing is lacking.

    spec: the run's own. arm, parent: see `single.walk`; the ends of an arm's stages stay, for they are the experiment's
    to clear. A run that failed after its report, by a limit of its suites, stays failed. Raises HarnessError when the
    folder is damaged or the tracking store cannot be asked, and RunError where the run itself would have failed.
    """
    lacking = []
    if not (folder.path / "report.html").is_file():
        page(registry, write.write, folder.path)
        if (folder.path / "report.html").is_file():  # else it has been said why not
            lacking.append("page")
    for end in folder.path.glob("stages/*/end") if arm is None else ():
        shutil.rmtree(end)
        lacking.append("disk")
    stands = status(spec.document["track"], folder.read("mlflow.json"))
    if not lacking and stands in (None, "FINISHED"):
        return None
    planned = plan.make(spec, registry)
    evaluations = _evaluations(folder.path, planned, registry)
    broken = any(one.breaches for stage in evaluations[1:] for one in stage)
    if not lacking and broken and stands == "FAILED":
        return None
    made = _report(spec, planned, registry, folder, evaluations)
    if stands not in (None, "FINISHED") and not (broken and stands == "FAILED"):
        lacking.append("tracking")
        # The machine is not watched any more: the run was over when it was killed.
        settings = {**spec.document["track"], "system_metrics": False}
        with tracked(settings, planned.name, registry, folder, again=True, parent=parent):
            _tell(spec, planned, registry, folder, evaluations, made, arm)
            scoring_module.require([one for stage in evaluations for one in stage], since=1)
    facts = {"folder": str(folder.path), "lacked": tuple(dict.fromkeys(lacking)), "report": made}
    registry.observe(Event("run_closed", data=facts))
    return made


def _evaluations(place: Path, planned: Plan, registry: Registry) -> Stages:
    """What the run measured, one tuple a stage, the base first, with its items, by the answers that it kept."""
    found = rescore.score_run(place, None, registry) if planned.suites else ()
    return tuple(tuple(one for one in found if one.stage == stage) for stage in range(len(planned.stages) + 1))


def _report(
    spec: Spec,
    planned: Plan,
    registry: Registry,
    folder: RunFolder,
    evaluations: Stages,
) -> Report:
    earlier: Earlier | None = None
    path, output = planned.model["path"], spec.document["output"]
    if path.startswith(SCHEME):
        before = find_run(path.removeprefix(SCHEME), output).resolve()
        earlier, _ = continue_run.carry(before, evaluations[0], output)
    return run_report.make(
        planned,
        evaluations,
        preflight.metrics_of(planned, registry),
        seed=planned.seed,
        run=document(folder.path, "report.json")["run"],
        conditions=spec.document["gate"],
        earlier=earlier,
    )


def _tell(
    spec: Spec,
    planned: Plan,
    registry: Registry,
    folder: RunFolder,
    evaluations: Stages,
    made: Report,
    arm: Mapping[str, Any] | None,
) -> None:
    """All that happened in the run, told again from its folder; a listener that was gone on with knows what it has."""

    def tell(kind: str, number: int = 0, /, **facts: Any) -> None:
        registry.observe(Event(kind, number, facts))

    place = folder.path
    named = {"name": planned.name, "id": place.name, "folder": str(place), "spec": spec.document, "plan": planned}
    tell("run_started", **named, environment=document(place, "environment.json"), again=True, arm=arm)
    tell("data", **{**document(place, "data.json"), "stages": planned.stages})
    tell("evaluated", 0, evaluations=evaluations[0])
    for number, stage in enumerate(planned.stages, start=1):
        kept = place / "stages" / stage.name
        try:
            trained = train_stage.Trained.of(document(kept, "trained.json"))
        except ValueError as error:
            what = "was written by another version"
            raise HarnessError(str(kept / "trained.json"), what, "use the version that wrote it") from error
        tell("stage_started", number, stage=stage, steps=trained.steps, again=True)
        tell("evaluated", number, evaluations=evaluations[number])
        tell("stage_finished", number, stage=stage, trained=trained, folder=str(place))
    tell("run_finished", len(planned.stages), report=made, seconds=made.run.get("seconds"))
