"""A stage watched on its way: evaluated every so many updates, and ended when it gets no better.

Knows the settings `evaluate_steps`, `evaluate_suites` and `early_stopping`. What was measured stands in the stage's
`evaluations.jsonl`, from which a stage that is gone on with knows where it was.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from harness.runner.folder import RunFolder, load_stage_snapshot
from harness.training.checkpoint import checkpoint_step
from harness.training.checkpoint import latest_checkpoint as latest_checkpoint
from harness.types import Evaluation, Stage
from harness.utils.json_depth import load_json


def combined_score(
    scores: Mapping[str, float],
    baseline: Mapping[str, float],
    higher_is_better: Mapping[str, bool],
    weights: Mapping[str, float],
) -> float:
    """The weighted sum of relative improvements over `baseline`, positive for the better; NaN when a score is no
    number.

    scores, baseline: `suite/score` -> value. higher_is_better: -> whether higher is better. A baseline of 0 has nothing
    to be relative to: there the improvement counts as it is.
    """
    total = 0.0
    for name, weight in weights.items():
        gained = scores[name] - baseline[name] if higher_is_better[name] else baseline[name] - scores[name]
        total += weight * gained / (abs(baseline[name]) or 1.0)
    return total


class EarlyStopping:
    """The best combined score of a stage so far, and the evaluations since then.

    settings: the spec's `early_stopping`. best: the update of the best evaluation; None before there is one.
    """

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self.patience, self.min_delta = int(settings["patience"]), float(settings["min_delta"])
        self.best_step: int | None = None
        self.best_value = -math.inf
        self.evaluations_since_best = 0

    def update(self, step: int, value: float) -> bool:
        """Take in the combined score after an update; whether it is the best so far. NaN is no improvement."""
        if math.isfinite(value) and (self.best_step is None or value > self.best_value + self.min_delta):
            self.best_step, self.best_value, self.evaluations_since_best = step, value, 0
            return True
        self.evaluations_since_best += 1
        return False

    @property
    def should_stop(self) -> bool:
        """Whether the stage has gone on long enough without getting better."""
        return self.evaluations_since_best >= self.patience


def is_due(stage: Stage, steps: int, step: int) -> bool:
    """Whether the model is looked at after update `step` of `steps`: the last may be the best one."""
    return step % stage.train["evaluate_steps"] == 0 or (step == steps and restores_best(stage))


def restores_best(stage: Stage) -> bool:
    """Whether the stage is to end with its best weights."""
    settings = stage.train["early_stopping"]
    return settings is not None and bool(settings["restore_best"])


class EarlyStopper:
    """One stage under watch. Called with the number of an update that is done, it says whether the stage ends there."""

    def __init__(
        self,
        stage: Stage,
        steps: int,
        folder: RunFolder,
        evaluate: Callable[[], Sequence[Evaluation]],
        start_evaluations: Sequence[Evaluation],
        save_snapshot: Callable[[Path], None],
        emit: Callable[..., None],
        resumed_step: int,
    ) -> None:
        """steps: updates of the stage. start_evaluations: the run's evaluations before its first update. save_snapshot:
        writes the weights and states of now into a folder. emit: `emit(event_type, **payload)`. resumed_step: the
        update that is gone on from, or 0.
        """
        self.stage, self.steps, self.folder = stage, steps, folder
        self.evaluate, self.save_snapshot, self.emit, self.resumed_step = evaluate, save_snapshot, emit, resumed_step
        self.settings: Mapping[str, Any] | None = stage.train["early_stopping"]
        self.start_scores = {
            f"{one.suite}/{score.name}": score.value for one in start_evaluations for score in one.scores
        }
        self.higher_is_better = {
            f"{one.suite}/{score.name}": bool(score.higher_is_better)
            for one in start_evaluations
            for score in one.scores
        }
        self.early_stopping = None if self.settings is None else EarlyStopping(self.settings)
        self._restore_progress()

    def __call__(self, step: int) -> bool:
        if step > self.resumed_step and is_due(self.stage, self.steps, step):
            self._evaluate_step(step)
        return self.early_stopping is not None and self.early_stopping.should_stop

    def restore_best_weights(self, model: Any, done: int) -> Mapping[str, Mapping[str, Any]]:
        """Put the best weights back, if that is asked for and they are not those after the `done` updates that were
        made; returns the states that the mitigations had then, none where nothing was put back."""
        states: Mapping[str, Mapping[str, Any]] = {}
        best = None if self.early_stopping is None else self.early_stopping.best_step
        if restores_best(self.stage) and best is not None and best != done:
            states = load_stage_snapshot(self._best_folder / str(best), model)
            self.emit("restored", step=best, of=done)
        return states

    def delete_best_weights(self) -> None:
        """Take the kept weights away; to be called when the stage's end is kept."""
        shutil.rmtree(self._best_folder, ignore_errors=True)

    # -- within ---------------------------------------------------------------------------------------------------

    @property
    def _evaluations_file(self) -> str:
        return f"stages/{self.stage.name}/evaluations.jsonl"

    @property
    def _best_folder(self) -> Path:
        return self.folder.stage_folder(self.stage.name) / "best"

    def _evaluate_step(self, step: int) -> None:
        scores = {f"{one.suite}/{score.name}": score.value for one in self.evaluate() for score in one.scores}
        value, best = None, False
        if self.settings is not None and self.early_stopping is not None:
            value = combined_score(scores, self.start_scores, self.higher_is_better, self.settings["scores"])
            best = self.early_stopping.update(step, value)
        kept = best and restores_best(self.stage)
        if kept:
            self.save_snapshot(self._best_folder / str(step))
            self._prune_best_weights(step)
        over = self.early_stopping is not None and self.early_stopping.should_stop and step < self.steps
        line = {"step": step, "scores": scores, "combined": value, "best": best, "kept": kept, "over": over}
        self.folder.append_json_line(self._evaluations_file, line)
        self.emit("measured", **line)

    def _prune_best_weights(self, best: int) -> None:
        """Keep the best weights, and those that were the best at the newest checkpoint, from which is gone on."""
        checkpoint = latest_checkpoint(self.folder.stage_folder(self.stage.name) / "checkpoints")
        there = [int(one.name) for one in self._best_folder.iterdir() if one.name.isdecimal()]
        for step in {*there} - {best, max((one for one in there if one <= checkpoint_step(checkpoint)), default=best)}:
            shutil.rmtree(self._best_folder / str(step))

    def _restore_progress(self) -> None:
        """Take in what was measured up to the update that is gone on from, and forget what came after it."""
        file = self.folder.path / self._evaluations_file
        if file.is_file():
            lines = [one for one in file.read_text(encoding="utf-8").splitlines(keepends=True) if one.endswith("\n")]
            known = [one for one in lines if load_json(one)["step"] <= self.resumed_step]
            file.write_text("".join(known), encoding="utf-8")
            for one in map(load_json, known):
                if self.early_stopping is not None:
                    self.early_stopping.update(one["step"], math.nan if one["combined"] is None else one["combined"])
        for one in self._best_folder.glob("*"):
            if not one.name.isdecimal() or int(one.name) > self.resumed_step:
                shutil.rmtree(one)
