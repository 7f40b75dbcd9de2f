"""The tracker `tensorboard`: scalars as event files."""

from __future__ import annotations

from functools import singledispatchmethod
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from harness import Component, HarnessError, Tracker, events

COMPONENTS = {
    "tensorboard": Component(
        summary="Writes losses and scores as TensorBoard event files.",
        factory="harness_trackers.tensorboard:TensorBoard",
        options={
            "folder": {
                "type": ["string", "null"],
                "minLength": 1,
                "format": "path",
                "default": None,
                "description": "Folder with one subfolder for each run. null: the folder tensorboard/ of the run.",
            }
        },
    )
}


class TensorBoard(Tracker):
    """Writes scalars: `<stage>/<metric>` by optimizer step and `<suite>/<score>` by stage (0: the base model).

    Each stage has event files of its own, in a subfolder. A resumed run tells TensorBoard at which step it begins, so
    that the steps which are trained again replace the earlier ones.
    """

    def __init__(self, folder: str | None) -> None:
        """Create a tracker; event files are created with the first value.

        Args:
            folder: Folder of all runs; None: the folder of the run.
        """
        self._folder = folder
        self._run_folder = Path()
        self._resuming = False
        self._writers: dict[str, Any] = {}
        self._stage = ""

    def check_available(self) -> None:
        """Require the package `tensorboard`."""
        if find_spec("tensorboard") is None:
            what = "the package 'tensorboard' is not installed"
            raise HarnessError("tracker tensorboard", what, "pip install tensorboard")

    @singledispatchmethod
    def on_event(self, event: events.Event) -> None:
        """Record an event by its class; other classes are ignored."""

    @on_event.register
    def _start_run(self, event: events.RunStarted) -> None:
        run_folder = Path(event.folder)
        run_name = f"{run_folder.parents[1].name}/{event.id}" if event.arm else event.id
        self._run_folder = run_folder / "tensorboard" if self._folder is None else Path(self._folder) / run_name
        self._resuming = event.resuming

    @on_event.register
    def _start_stage(self, event: events.StageStarted) -> None:
        self._stage = event.stage.name

    @on_event.register
    def _log_step(self, event: events.StepLogged) -> None:
        writer = self._writer(self._stage, event.step)
        for name, value in event.metrics.items():
            writer.add_scalar(f"{self._stage}/{name}", value, event.step)

    @on_event.register
    def _log_mid_stage_scores(self, event: events.MidStageEvaluated) -> None:
        writer = self._writer(self._stage, event.step)
        for name, value in event.scores.items():
            writer.add_scalar(f"{self._stage}/during/{name}", value, event.step)
        for name, value in event.mitigations.items():
            writer.add_scalar(f"{self._stage}/{name}", value, event.step)
        writer.flush()

    @on_event.register
    def _log_scores(self, event: events.SuitesEvaluated) -> None:
        writer = self._writer("", event.stage_index)
        for evaluation in event.evaluations:
            for score in evaluation.scores:
                writer.add_scalar(f"{evaluation.suite}/{score.name}", score.value, event.stage_index)
        writer.flush()

    @on_event.register(events.RunFinished)
    @on_event.register(events.RunFailed)
    def _end_run(self, event: events.Event) -> None:
        for writer in self._writers.values():
            writer.close()

    def _writer(self, stage: str, first_step: int) -> Any:
        """Return the writer of a stage's steps, or of the scores (""). A new one replaces values from `first_step`."""
        from torch.utils.tensorboard.writer import SummaryWriter

        if stage not in self._writers:
            purge_step = first_step if self._resuming else None
            self._writers[stage] = SummaryWriter(str(self._run_folder / stage), purge_step=purge_step)
        return self._writers[stage]
