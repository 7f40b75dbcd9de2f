"""One run, from its proven data to its report: the order of the rooms, and what is kept on the way.

prepared → load → base evaluation → (train → evaluate) per stage → report. A run that is gone on with walks the same
way again; what it finds done in its folder is read instead of done. Of several processes the main one walks here, and
those beside it in `following`.
"""

from __future__ import annotations

import json
import math
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from harness.data.checks import findings
from harness.data.tokenization import fingerprints
from harness.distributed.processes import ALONE, Ranks
from harness.errors import HarnessError, RunError
from harness.evaluation import scoring
from harness.model import save
from harness.registry import Registry
from harness.report import run_report
from harness.report.html import write
from harness.report.run_report import Report
from harness.runner import early_stopping, metadata
from harness.runner.evaluate_stages import Measuring
from harness.runner.folder import RunFolder, save_end
from harness.runner.prepare import Prepared, page
from harness.runner.stage_loop import Course, Task, states_of
from harness.runner.staged_model import Chain
from harness.spec import preflight
from harness.spec.spec import Spec
from harness.tracking.tracker import Tracker
from harness.training import checkpoint, train_stage
from harness.types import Event


@contextmanager
def tracked(
    settings: Mapping[str, Any],
    name: str,
    registry: Registry,
    folder: RunFolder,
    *,
    again: bool = False,
    parent: str | None = None,
    ranks: Ranks = ALONE,
) -> Iterator[Tracker]:
    """Within it events go to the run's tracker too. What breaks the run off is told before it is raised.

    settings: the spec's `track`. again: whether the folder's run is gone on with. parent: the MLflow id of the
    experiment's run. ranks: the processes that share the run, and end with it. Raises RunError where a file of the
    run cannot be written or read.
    """
    tracker = Tracker(
        settings,
        name,
        warn=lambda text: registry.observe(Event("warning", data={"text": text})),
        parent=parent,
        again=folder.read("mlflow.json") if again else None,
    )

    def failed(why: str) -> None:
        registry.observe(Event("run_failed", data={"error": why, "folder": str(folder.path)}))

    registry.manager.register(tracker, name="track")
    try:
        with ranks.on_leaving(failed):
            try:
                yield tracker
            except OSError as error:
                what = f"a file of the run cannot be written or read: {error}"
                hint = f"free space or mend the folder, and go on: harness run --resume {folder.path}"
                raise RunError(str(folder.path), what, hint) from error
    except BaseException as error:
        ranks.end()
        failed("interrupted" if isinstance(error, KeyboardInterrupt) else f"{type(error).__name__}: {error}")
        raise
    finally:
        registry.manager.unregister(tracker)


def walk(
    spec: Spec,
    registry: Registry,
    ready: Prepared,
    found: findings.Findings,
    folder: RunFolder,
    *,
    again: bool = False,
    arm: Mapping[str, Any] | None = None,
    parent: str | None = None,
    shared: int = 0,
    ranks: Ranks = ALONE,
) -> Report:
    """Run a prepared spec in its folder, tracked. The folder stays, however the run ends.

    again: go on with what the folder holds. arm: `name` and `changes` of an experiment's arm. parent: the MLflow id of
    the experiment's run. shared: of how many stages the ends stay, for other arms. ranks: the processes that train it;
    the others follow from here on. Raises HarnessError or RunError.
    """
    track, name = spec.document["track"], ready.plan.name
    with tracked(track, name, registry, folder, again=again, parent=parent, ranks=ranks) as tracker:
        ranks.share(Task(spec, folder.path, again))
        return Walk(spec, registry, ready, folder, ranks, again, found, tracker, arm, shared).run()


class Walk(Course):
    """A run under way, in the main process. found: what the wording of its data gave away."""

    def __init__(
        self,
        spec: Spec,
        registry: Registry,
        ready: Prepared,
        folder: RunFolder,
        ranks: Ranks,
        again: bool,
        found: findings.Findings,
        tracker: Tracker,
        arm: Mapping[str, Any] | None,
        shared: int,
    ) -> None:
        super().__init__(spec, registry, ready, folder, ranks, again)
        self.found, self.tracker, self.arm, self.shared = found, tracker, arm, shared
        self.started = time.monotonic()
        self.measuring = Measuring(self)

    def run(self) -> Report:
        """Walk all the way. Raises HarnessError or RunError; what was made stays."""
        self._begin()
        chain = self._chain()
        self.measuring.stage(chain, 0)
        for number in range(1, len(self.ready.plan.stages) + 1):
            self._walk_stage(chain, number)
        return self._end(chain)

    # -- before and after ---------------------------------------------------------------------------------------------

    def _begin(self) -> None:
        planned = self.ready.plan
        described = metadata.environment_of(self.ready, self.registry, self.spec.file, self.ranks.count)
        found = metadata.data_of(self.ready, self.found)
        if self.again:
            self._refuse_another_start(found, described)
            self.measuring.scored = len((self.folder.read("scores.json") or {}).get("stages", ())) - 1
        else:
            self.folder.write("spec.json", self.spec.document)
        self._keep_rejected()
        if not (self.folder.path / "environment.json").is_file():  # broken off that early, it has none yet
            self.folder.write("environment.json", described)
        self._tell("run_started", **self._facts(), environment=described, again=self.again, arm=self.arm)
        self.folder.write("data.json", {**found, "stages": [one.name for one in planned.stages]})
        self._tell("data", **found)

    def _end(self, chain: Chain) -> Report:
        planned = self.ready.plan
        known = {**self._facts(), "seconds": time.monotonic() - self.started, "uri": self.tracker.uri}
        save.save(chain.whole(), self.ready.tokenizer, self.folder.path / "model")
        fingerprints.record(
            self.folder.path / "model", planned, fingerprints.fingerprint(self.ready.template, self.ready.tokenizer)
        )
        made = run_report.make(
            planned,
            self.measuring.evaluations,
            self.ready.metrics,
            seed=planned.seed,
            run=known,
            conditions=self.spec.document["gate"],
            earlier=self.measuring.earlier,
        )
        made.write(self.folder.path)  # a run with a report is finished
        page(self.registry, write.write, self.folder.path)
        for stage in planned.stages[self.shared :]:
            self.folder.drop(f"stages/{stage.name}/end")
        self._tell("run_finished", len(planned.stages), report=made, seconds=time.monotonic() - self.started)
        scoring.require([one for stage in self.measuring.evaluations for one in stage], since=1)
        return made

    def _keep_rejected(self) -> None:
        """Move the files that name the bad rows of sources, which the spec allows, into the run's folder."""
        for name, told in self.ready.data.told.items():
            if told.corpus.rejections is not None and told.corpus.rejections.is_file():
                (self.folder.path / "rejected").mkdir(exist_ok=True)
                shutil.copyfile(told.corpus.rejections, self.folder.path / "rejected" / f"{name}.jsonl")

    def _refuse_another_start(self, found: Mapping[str, Any], described: Mapping[str, Any]) -> None:
        """A run goes on with what it began with, or not at all."""
        before = self.folder.read("data.json") or {}
        began = (self.folder.read("environment.json") or {}).get("model") or {}
        if began.get("digest") not in (None, described["model"]["digest"]):
            hint = "bring back the files that it began with, or start a new run"
            raise HarnessError(str(self.folder.path), "its base model is no longer the one that it began with", hint)
        for key, what in (("digests", "the rows of its sources"), ("template", "what its template renders")):
            if before.get(key) not in (None, found[key]):
                hint = "bring back what it began with, or start a new run"
                raise HarnessError(str(self.folder.path), f"{what} are no longer those that the run began with", hint)

    # -- one stage ----------------------------------------------------------------------------------------------------

    def _walk_stage(self, chain: Chain, number: int) -> None:
        data = self.ready.data.stages[number - 1]
        stage = data.stage
        done = (self.folder.stage(stage.name) / "end").is_dir()
        totals = self.folder.read(f"stages/{stage.name}/trained.json") if done else None
        steps = data.steps(self.ranks.count)
        self._tell("stage_started", number, stage=stage, steps=steps, again=totals is not None)
        trained = self._stage(chain, number, totals)
        if totals is not None and not self.again:
            self._retell(number, stage.name)
        self.measuring.stage(chain, number)
        self.measuring.variants(chain, number)
        self._tell("stage_finished", number, stage=stage, trained=trained, folder=str(self.folder.path))

    def _conclude(
        self, chain: Chain, number: int, trained: train_stage.Trained, watch: early_stopping.Watch | None
    ) -> None:
        """Let the mitigations learn from the stage, and keep what it came to."""
        data = self.ready.data.stages[number - 1]
        if watch is not None:
            for name, state in watch.finish(chain.net, trained.steps).items():
                chain.active[name].load_state_dict(state)
        train_stage.seed_mitigations(self._seed(number))
        with self._computation(chain):
            chain.leave(number, data.rows)
        self._keep(chain, trained, data.stage.name, number)
        if watch is not None:
            watch.clear()
        self.ranks.share(trained.totals())
        self.ranks.meet()  # the others have read it

    def _watch(self, chain: Chain, number: int, resumed: Path | None) -> early_stopping.Watch | None:
        data = self.ready.data.stages[number - 1]
        if data.stage.train["evaluate_steps"] is None:
            return None
        suites, metrics = preflight.within(data.stage, self.ready.plan.suites, self.ready.metrics)
        return early_stopping.Watch(
            data.stage,
            data.steps(self.ranks.count),
            self.folder,
            lambda: self.measuring.now(chain, number, None, suites, metrics),
            self.measuring.evaluations[0],
            lambda place: save_end(place, chain.net, states_of(chain)),
            lambda kind, **facts: self._tell(kind, number, **facts),
            checkpoint.reached(resumed),
        )

    def _retell(self, number: int, name: str) -> None:
        """Tell the listeners of the updates and evaluations of a stage that was taken over from another arm."""
        for metrics in self._lines(name, "steps.jsonl"):
            self._tell("step", number, step=metrics.pop("step"), metrics=_numbers(metrics))
        for measured in self._lines(name, "evaluations.jsonl"):
            self._tell("measured", number, **{**measured, "scores": _numbers(measured["scores"])})

    def _lines(self, name: str, kept: str) -> list[dict[str, Any]]:
        file = self.folder.stage(name) / kept
        return [json.loads(one) for one in file.read_text(encoding="utf-8").splitlines()] if file.is_file() else []

    def _forget_steps(self, name: str, resumed: Path | None) -> None:
        """Take out of `steps.jsonl` the updates that are done anew."""
        file = self.folder.stage(name) / "steps.jsonl"
        if file.is_file():
            last = checkpoint.reached(resumed)
            whole = [line for line in file.read_text(encoding="utf-8").splitlines(keepends=True) if line.endswith("\n")]
            file.write_text("".join(one for one in whole if json.loads(one)["step"] <= last), encoding="utf-8")

    def _keep(self, chain: Chain, trained: train_stage.Trained, name: str, number: int) -> None:
        """Keep what later stages, people, and other processes need of this one."""
        try:
            save_end(self.folder.stage(name) / "end", chain.net, states_of(chain))
        except RunError as error:  # all that the run needs is in memory still, if it is in no other process
            if self.ranks.count > 1:
                raise
            text = f"{error}; the run goes on, and trains this stage again if it is broken off and resumed"
            self.registry.observe(Event("warning", data={"text": text}))
        # An adapter whose base has earlier ones merged into it would be loaded onto the wrong weights.
        if number < len(self.ready.plan.stages) and save.saves_adapter(chain.net) and not chain.merged:
            save.save(chain.net, self.ready.tokenizer, self.folder.stage(name) / "model")
        self.folder.write(f"stages/{name}/trained.json", trained.totals())

    def _step(self, number: int, name: str, resumed: Path | None) -> Callable[[int, Mapping[str, float]], None]:
        """Writes each logged update to the run's folder, whatever the tracker does, and tells the listeners.

        What is done anew is taken out of the file at the first update that is, so that a stage which cannot be gone on
        with loses nothing.
        """
        first = True

        def step(step: int, metrics: Mapping[str, float]) -> None:
            nonlocal first
            if first:
                self._forget_steps(name, resumed)
            first = False
            self.folder.append(f"stages/{name}/steps.jsonl", {"step": step, **metrics})
            self._tell("step", number, step=step, metrics=metrics)

        return step

    # -- facts --------------------------------------------------------------------------------------------------------

    def _tell(self, kind: str, number: int = 0, /, **facts: Any) -> None:
        self.registry.observe(Event(kind, number, facts))

    def _facts(self) -> dict[str, Any]:
        path = self.folder.path
        named = {"name": self.ready.plan.name, "id": path.name, "folder": str(path)}
        return {**named, "spec": self.spec.document, "plan": self.ready.plan}


def _numbers(kept: Mapping[str, Any]) -> dict[str, float]:
    """Values as they were before JSON, which has null for what is no finite number."""
    return {name: math.nan if value is None else value for name, value in kept.items()}
