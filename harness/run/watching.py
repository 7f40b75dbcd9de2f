"""A stage watched on its way: evaluated every so many updates, and ended when it gets no better.

Knows the settings `evaluate_steps`, `evaluate_suites` and `early_stopping`. What was measured stands in the stage's
`evaluations.jsonl`, from which a stage that is gone on with knows where it was.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from harness.contracts import Evaluation, Metric, Plan, Stage, Suite
from harness.errors import HarnessError
from harness.run.folder import RunFolder, load_end, save_end
from harness.spec import Spec
from harness.train import latest_checkpoint
from harness.train.stopping import Stopping, combined

Metrics = Mapping[str, Mapping[str, Metric]]
Measure = Callable[[Sequence[Suite], Metrics], Sequence[Evaluation]]
CHEAP = ("likelihood", "choices", "text")
"""What a metric may read that is measured within a stage without being asked for: one forward pass of the rows."""


def within(stage: Stage, suites: Sequence[Suite], metrics: Metrics) -> tuple[tuple[Suite, ...], Metrics]:
    """The suites and metrics that are measured within a stage."""
    named = stage.train["evaluate_suites"]
    if named is not None:
        return tuple(one for one in suites if one.name in named), metrics
    cheap = {
        suite.name: {name: one for name, one in metrics[suite.name].items() if one.reads in CHEAP} for suite in suites
    }
    return tuple(one for one in suites if cheap[one.name]), cheap


def wrong(spec: Spec, planned: Plan, metrics: Metrics) -> Iterator[HarnessError]:
    """What is wrong with the settings of a stage's watching, told before anything is loaded."""
    for number, stage in enumerate(planned.stages):
        every, settings, named = (stage.train[key] for key in ("evaluate_steps", "early_stopping", "evaluate_suites"))

        def where(key: str, *more: str, at: int = number, own: Mapping[str, Any] = stage.train) -> str:
            if own[key] == spec.document["train"][key]:
                return spec.where(("train", key, *more))
            return spec.where(("mode", next(iter(spec.document["mode"])), "stages", at, "train", key, *more))

        if every is None:
            if settings is not None:
                what = "nothing is measured within the stage that could end it"
                yield HarnessError(where("early_stopping"), what, 'say how often: "evaluate_steps": 50')
            continue
        known = {one.name: one for one in planned.suites}
        for suite in named or ():
            if suite not in known:
                hint = f"the spec's suites are: {', '.join(known) or 'none'}"
                yield HarnessError(where("evaluate_suites"), f"there is no suite {suite!r}", hint)
            elif known[suite].server is not None:
                what = f"the suite {suite!r} is answered by a server, which does not have the weights of every update"
                yield HarnessError(where("evaluate_suites"), what, "leave it out")
        suites, chosen = within(stage, planned.suites, metrics)
        given = {f"{s.name}/{name}": one for s in suites for one in chosen[s.name].values() for name in one.names}
        if not given:
            hint = "name suites in evaluate_suites, or add a metric such as response_perplexity"
            yield HarnessError(where("evaluate_steps"), "no suite has a metric that is measured within a stage", hint)
        for score in settings["scores"] if settings is not None else ():
            if score not in given:
                hint = f"measured within a stage are: {', '.join(given) or 'none'}; others need evaluate_suites"
                yield HarnessError(where("early_stopping", "scores", score), f"{score!r} is not measured there", hint)
            elif given[score].higher_is_better is None:
                what = f"{score!r} has no better direction"
                yield HarnessError(where("early_stopping", "scores", score), what, "weigh another score")


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

    @property
    def restores(self) -> bool:
        """Whether the stage is to end with its best weights."""
        return self.settings is not None and bool(self.settings["restore_best"])

    def __call__(self, step: int) -> bool:
        if step > self.resumed and self._due(step):
            self._look(step)
        return self.stopping is not None and self.stopping.over

    def finish(self, net: Any, done: int) -> Mapping[str, Mapping[str, Any]]:
        """Put the best weights back, if that is asked for and they are not those after the `done` updates that were
        made; returns the states that the mitigations had then, none where nothing was put back."""
        states: Mapping[str, Mapping[str, Any]] = {}
        best = None if self.stopping is None else self.stopping.best
        if self.restores and best is not None and best != done:
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

    def _due(self, step: int) -> bool:
        # The last update may be the best one.
        return step % self.stage.train["evaluate_steps"] == 0 or (step == self.steps and self.restores)

    def _look(self, step: int) -> None:
        scores = {f"{one.suite}/{score.name}": score.value for one in self.measure() for score in one.scores}
        value, best = None, False
        if self.settings is not None and self.stopping is not None:
            value = combined(scores, self.start, self.higher, self.settings["scores"])
            best = self.stopping.take(step, value)
        kept = best and self.restores
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
        reached = int(checkpoint.name.rpartition("-")[2]) if checkpoint is not None else 0
        there = [int(one.name) for one in self._bests.iterdir() if one.name.isdecimal()]
        for step in {*there} - {best, max((one for one in there if one <= reached), default=best)}:
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


def keeper(net: Any, active: Mapping[str, Any]) -> Callable[[Path], None]:
    """Writes the weights that move, and the mitigations' states, as they are when it is called."""
    return lambda folder: save_end(folder, net, {name: one.state_dict() for name, one in active.items()})
