"""The tracker `wandb`: runs in Weights & Biases."""

from __future__ import annotations

import json
from functools import singledispatchmethod
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from harness import Component, HarnessError, Tracker, events
from harness.utils.json_depth import load_json
from harness.utils.json_files import read_json_lines

COMPONENTS = {
    "wandb": Component(
        summary="Logs losses and scores to Weights & Biases.",
        factory="harness_trackers.weights_and_biases:WeightsAndBiases",
        options={
            "project": {
                "type": ["string", "null"],
                "minLength": 1,
                "default": None,
                "description": "Project. null: the spec's name.",
            },
            "entity": {
                "type": ["string", "null"],
                "minLength": 1,
                "default": None,
                "description": "User or team. null: the default of the account.",
            },
            "mode": {
                "enum": ["online", "offline"],
                "default": "online",
                "description": "Whether to send the run while it runs, or to store it in its folder for `wandb sync`.",
            },
        },
    )
}


class WeightsAndBiases(Tracker):
    """Logs `<stage>/<metric>` by optimizer step and `<suite>/<score>` by stage (0: the base model).

    The id of the run is derived from its folder, so that a resumed run is continued. What it has logged before it was
    interrupted is not logged again. The arms of an experiment are a group.
    """

    def __init__(self, project: str | None, entity: str | None, mode: str) -> None:
        """Create a tracker; the run is created at `RunStarted`.

        Args:
            project: Project; None: the spec's name.
            entity: User or team; None: the default of the account.
            mode: `online` or `offline`.
        """
        self._project, self._entity, self._mode = project, entity, mode
        self._run: Any = None
        self._stage = ""
        self._stage_names: tuple[str, ...] = ()
        self._logged_steps: dict[str, int] = {}
        self._scored_stages: set[str] = set()

    def check_available(self) -> None:
        """Require the package `wandb`."""
        if find_spec("wandb") is None:
            raise HarnessError("tracker wandb", "the package 'wandb' is not installed", "pip install wandb")

    @singledispatchmethod
    def on_event(self, event: events.Event) -> None:
        """Record an event by its class; other classes are ignored."""

    @on_event.register
    def _start_run(self, event: events.RunStarted) -> None:
        if event.resuming:  # before anything else: the run discards steps that it trains again
            self._logged_steps, self._scored_stages = (
                logged_steps(Path(event.folder)),
                scored_stages(Path(event.folder)),
            )
        self._stage_names = ("base", *(stage.name for stage in event.plan.stages))
        import wandb

        group = Path(event.folder).parents[1].name if event.arm else None
        self._run = wandb.init(
            project=self._project or event.name,
            entity=self._entity,
            mode=self._mode,
            dir=event.folder,
            id=f"{group}-{event.id}" if group else event.id,
            name=event.id,
            group=group,
            resume="allow",
            config=json.loads(json.dumps(event.spec, default=dict)),
            settings=wandb.Settings(silent=True, console="off", x_disable_stats=True),
        )

    @on_event.register
    def _start_stage(self, event: events.StageStarted) -> None:
        self._stage = event.stage.name
        self._run.define_metric(f"{self._stage}/*", step_metric=f"{self._stage}/step")

    @on_event.register
    def _log_step(self, event: events.StepLogged) -> None:
        if event.step > self._logged_steps.get(self._stage, 0):
            self._log(self._stage, event.metrics, "step", event.step)

    @on_event.register
    def _log_mid_stage_scores(self, event: events.MidStageEvaluated) -> None:
        if event.step > self._logged_steps.get(self._stage, 0):
            scores = {f"during/{name}": value for name, value in event.scores.items()}
            self._log(self._stage, {**scores, **event.mitigations}, "step", event.step)

    @on_event.register
    def _log_scores(self, event: events.SuitesEvaluated) -> None:
        if self._stage_names[event.stage_index] in self._scored_stages:
            return
        for evaluation in event.evaluations:
            self._run.define_metric(f"{evaluation.suite}/*", step_metric=f"{evaluation.suite}/stage")
            scores = {score.name: score.value for score in evaluation.scores}
            self._log(evaluation.suite, scores, "stage", event.stage_index)

    @on_event.register
    def _finish_run(self, event: events.RunFinished) -> None:
        self._run.finish(exit_code=0)

    @on_event.register
    def _fail_run(self, event: events.RunFailed) -> None:
        if self._run is not None:
            self._run.finish(exit_code=1)

    def _log(self, section: str, values: Any, axis: str, position: int) -> None:
        """Log values of a stage or suite, with their position on its axis."""
        self._run.log({f"{section}/{name}": value for name, value in values.items()} | {f"{section}/{axis}": position})


def logged_steps(folder: Path) -> dict[str, int]:
    """Return stage -> the last step that an interrupted run has logged. folder: that of the run."""
    steps = {file.parent.name: read_json_lines(file) for file in folder.glob("stages/*/steps.jsonl")}
    return {stage: max((int(line["step"]) for line in lines), default=0) for stage, lines in steps.items()}


def scored_stages(folder: Path) -> set[str]:
    """Return the names of the stages whose scores an interrupted run has logged; `base`: before the first one."""
    file = folder / "scores.json"
    if not file.is_file():
        return set()
    return {stage["name"] for stage in load_json(file.read_text(encoding="utf-8"))["stages"]}
