"""A stage watched on its way: evaluated every so many updates, and ended when it gets no better.

Knows the settings `evaluate_steps`, `evaluate_suites` and `early_stopping`. What was measured stands in the stage's
`evaluations.jsonl`, from which a stage that is gone on with knows where it was.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from harness.runner.folder import RunFolder, load_end
from harness.training.checkpoint import latest as latest_checkpoint
from harness.training.checkpoint import reached
from harness.types import Evaluation, Stage


def combined(
    scores: Mapping[str, float], start: Mapping[str, float], higher: Mapping[str, bool], weights: Mapping[str, float]
) -> float:
    """The weighted sum of relative improvements over `start`, positive for the better; NaN when a score is no number.

    scores, start: `suite/score` -> value. higher: -> whether higher is better. A start of 0 has nothing to be relative
    to: there the improvement counts as it is.
    """
    total = 0.0
    for name, weight in weights.items():
        gained = scores[name] - start[name] if higher[name] else start[name] - scores[name]
        total += weight * gained / (abs(start[name]) or 1.0)
    return total


class Stopping:
    """The best combined score of a stage so far, and the evaluations since then.

    settings: the spec's `early_stopping`. best: the update of the best evaluation; None before there is one.
    """

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self.patience, self.min_delta = int(settings["patience"]), float(settings["min_delta"])
        self.best: int | None = None
        self.value = -math.inf
        self.since = 0

    def take(self, step: int, value: float) -> bool:
        """Take in the combined score after an update; whether it is the best so far. NaN is no improvement."""
        if math.isfinite(value) and (self.best is None or value > self.value + self.min_delta):
            self.best, self.value, self.since = step, value, 0
            return True
        self.since += 1
        return False

    @property
    def over(self) -> bool:
        """Whether the stage has gone on long enough without getting better."""
        return self.since >= self.patience


def due(stage: Stage, steps: int, step: int) -> bool:
    """Whether the model is looked at after update `step` of `steps`: the last may be the best one."""
    return step % stage.train["evaluate_steps"] == 0 or (step == steps and restores(stage))


def restores(stage: Stage) -> bool:
    """Whether the stage is to end with its best weights."""
    settings = stage.train["early_stopping"]
    return settings is not None and bool(settings["restore_best"])


class Watch:
    """One stage under watch. Called with the number of an update that is done, it says whether the stage ends there."""

    def __init__(
        self,
        stage: Stage,
        steps: int,
        folder: RunFolder,
        measure: Callable[[], Sequence[Evaluation]],
        start: Sequence[Evaluation],
        keep: Callable[[Path], None],
        tell: Callable[..., None],
        resumed: int,
    ) -> None:
        """steps: updates of the stage. start: the run's evaluations before its first update. keep: writes the weights
        and states of now into a folder. tell: `tell(kind, **facts)`. resumed: the update that is gone on from, or 0.
        """
        self.stage, self.steps, self.folder = stage, steps, folder
        self.measure, self.keep, self.tell, self.resumed = measure, keep, tell, resumed
        self.settings: Mapping[str, Any] | None = stage.train["early_stopping"]
        self.start = {f"{one.suite}/{score.name}": score.value for one in start for score in one.scores}
        self.higher = {
            f"{one.suite}/{score.name}": bool(score.higher_is_better) for one in start for score in one.scores
        }
        self.stopping = None if self.settings is None else Stopping(self.settings)
        self._replay()

    def __call__(self, step: int) -> bool:
        if step > self.resumed and due(self.stage, self.steps, step):
            self._look(step)
        return self.stopping is not None and self.stopping.over

    def finish(self, net: Any, done: int) -> Mapping[str, Mapping[str, Any]]:
        """Put the best weights back, if that is asked for and they are not those after the `done` updates that were
        made; returns the states that the mitigations had then, none where nothing was put back."""
        states: Mapping[str, Mapping[str, Any]] = {}
        best = None if self.stopping is None else self.stopping.best
        if restores(self.stage) and best is not None and best != done:
            states = load_end(self._bests / str(best), net)
            self.tell("restored", step=best, of=done)
        return states

    def clear(self) -> None:
        """Take the kept weights away; to be called when the stage's end is kept."""
        shutil.rmtree(self._bests, ignore_errors=True)

    # -- within ---------------------------------------------------------------------------------------------------

    @property
    def _file(self) -> str:
        return f"stages/{self.stage.name}/evaluations.jsonl"

    @property
    def _bests(self) -> Path:
        return self.folder.stage(self.stage.name) / "best"

    def _look(self, step: int) -> None:
        scores = {f"{one.suite}/{score.name}": score.value for one in self.measure() for score in one.scores}
        value, best = None, False
        if self.settings is not None and self.stopping is not None:
            value = combined(scores, self.start, self.higher, self.settings["scores"])
            best = self.stopping.take(step, value)
        kept = best and restores(self.stage)
        if kept:
            self.keep(self._bests / str(step))
            self._prune(step)
        over = self.stopping is not None and self.stopping.over and step < self.steps
        line = {"step": step, "scores": scores, "combined": value, "best": best, "kept": kept, "over": over}
        self.folder.append(self._file, line)
        self.tell("measured", **line)

    def _prune(self, best: int) -> None:
        """Keep the best weights, and those that were the best at the newest checkpoint, from which is gone on."""
        checkpoint = latest_checkpoint(self.folder.stage(self.stage.name) / "checkpoints")
        there = [int(one.name) for one in self._bests.iterdir() if one.name.isdecimal()]
        for step in {*there} - {best, max((one for one in there if one <= reached(checkpoint)), default=best)}:
            shutil.rmtree(self._bests / str(step))

    def _replay(self) -> None:
        """Take in what was measured up to the update that is gone on from, and forget what came after it."""
        file = self.folder.path / self._file
        if file.is_file():
            lines = [one for one in file.read_text(encoding="utf-8").splitlines(keepends=True) if one.endswith("\n")]
            known = [one for one in lines if json.loads(one)["step"] <= self.resumed]
            file.write_text("".join(known), encoding="utf-8")
            for one in map(json.loads, known):
                if self.stopping is not None:
                    self.stopping.take(one["step"], math.nan if one["combined"] is None else one["combined"])
        for one in self._bests.glob("*"):
            if not one.name.isdecimal() or int(one.name) > self.resumed:
                shutil.rmtree(one)
