"""One run, from its proven data to its report: the order of the rooms, and what is kept on the way.

prepared → load → base evaluation → (train → evaluate) per stage → report. A run that is gone on with walks the same
way again; what it finds done in its folder is read instead of done.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness import data, evaluate, foreseen, model, report, train
from harness.contracts import Evaluation, Event, Metric, Stage, Suite, silent
from harness.data import encode, fingerprints
from harness.errors import HarnessError, RunError
from harness.registry import Registry
from harness.report import Earlier, Report, html, variants
from harness.run import facts, onward, watching
from harness.run.chain import Chain
from harness.run.folder import RunFolder, load_end, save_end
from harness.run.preparing import Prepared, page, progress_of
from harness.run.tracked import tracked
from harness.seeds import derive
from harness.spec import Spec
from harness.track import Tracker


def walk(
    spec: Spec,
    registry: Registry,
    ready: Prepared,
    found: data.Findings,
    folder: RunFolder,
    *,
    again: bool = False,
    arm: Mapping[str, Any] | None = None,
    parent: str | None = None,
    shared: int = 0,
) -> Report:
    """Run a prepared spec in its folder, tracked. The folder stays, however the run ends.

    again: go on with what the folder holds. arm: `name` and `changes` of an experiment's arm. parent: the MLflow id of
    the experiment's run. shared: of how many stages the ends stay, for other arms. Raises HarnessError or RunError.
    """
    track, name = spec.document["track"], ready.plan.name
    with tracked(track, name, registry, folder, again=again, parent=parent) as tracker:
        return Walk(spec, registry, ready, found, folder, tracker, again, arm, shared).run()


@dataclass
class Walk:
    """A run under way. found: what the wording of its data gave away. again: whether it is gone on with."""

    spec: Spec
    registry: Registry
    ready: Prepared
    found: data.Findings
    folder: RunFolder
    tracker: Tracker
    again: bool = False
    arm: Mapping[str, Any] | None = None
    shared: int = 0
    started: float = field(default_factory=time.monotonic)
    evaluations: list[tuple[Evaluation, ...]] = field(default_factory=list)
    variants: list[dict[str, Any]] = field(default_factory=list)
    scored: int = -1
    """The last stage whose scores the folder holds from before."""
    earlier: Earlier | None = None
    """Of a run that goes on from another: what that one measured."""
    untouched: Any = None
    """A second copy of the base model, loaded when a metric needs it and the model cannot give it back."""

    def run(self) -> Report:
        """Walk all the way. Raises HarnessError or RunError; what was made stays."""
        planned = self.ready.plan
        self._begin()
        net = self._load()
        train.seed_mitigations(planned.seed)
        chain = Chain(net, planned, self.registry, self._policy())
        self._evaluate(chain, 0)
        for number in range(1, len(planned.stages) + 1):
            self._stage(chain, number)
        return self._end(chain)

    # -- before and after ---------------------------------------------------------------------------------------------

    def _begin(self) -> None:
        planned = self.ready.plan
        described = facts.environment_of(self.ready, self.registry, self.spec.file)
        found = facts.data_of(self.ready, self.found)
        if self.again:
            self._refuse_another_start(found, described)
            self.scored = len((self.folder.read("scores.json") or {}).get("stages", ())) - 1
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
        model.save(chain.whole(), self.ready.tokenizer, self.folder.path / "model")
        fingerprints.record(
            self.folder.path / "model", planned, encode.fingerprint(self.ready.template, self.ready.tokenizer)
        )
        made = report.make(
            planned,
            self.evaluations,
            self.ready.metrics,
            seed=planned.seed,
            run=known,
            conditions=self.spec.document["gate"],
            earlier=self.earlier,
        )
        made.write(self.folder.path)  # a run with a report is finished
        page(self.registry, html.write, self.folder.path)
        for stage in planned.stages[self.shared :]:
            self.folder.drop(f"stages/{stage.name}/end")
        self._tell("run_finished", len(planned.stages), report=made, seconds=time.monotonic() - self.started)
        evaluate.require([one for stage in self.evaluations for one in stage], since=1)
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

    def _stage(self, chain: Chain, number: int) -> None:
        data = self.ready.data.stages[number - 1]
        stage, precision = data.stage, self.ready.plan.train["precision"]
        place = self.folder.stage(stage.name)
        totals = self.folder.read(f"stages/{stage.name}/trained.json") if (place / "end").is_dir() else None
        self._tell("stage_started", number, stage=stage, steps=data.steps(), again=totals is not None)
        own = self._seed(number)
        train.seed_mitigations(own)
        with model.computation(chain.net, precision):
            active = chain.enter(number, self.ready.data.rows)
        if totals is not None:
            trained = self._recall(place, chain, totals)
            if not self.again:
                self._retell(number, stage.name)
        else:
            resumed = train.latest_checkpoint(place / "checkpoints") if self.again else None
            watch = self._watch(chain, number, data.steps(), resumed)
            trained = train.train(
                chain.net,
                self.ready.tokenizer,
                data,
                active,
                seed=self.ready.plan.seed,
                folder=place,
                progress=progress_of(self.registry),
                on_step=self._step(number, stage.name, resumed),
                resume=resumed,
                check=watch,
            )
            if watch is not None:
                for name, state in watch.finish(chain.net, trained.steps).items():
                    active[name].load_state_dict(state)
            train.seed_mitigations(own)
            with model.computation(chain.net, precision):
                chain.leave(number, data.rows)
            self._keep(chain, trained, stage.name, number)
            if watch is not None:
                watch.clear()
        self._evaluate(chain, number)
        self._measure_variants(chain, number)
        self._tell("stage_finished", number, stage=stage, trained=trained, folder=str(self.folder.path))

    def _seed(self, number: int) -> int:
        """Of what the mitigations of a stage draw: a second adapter does not start where the first one did."""
        seed = self.ready.plan.seed
        return (
            seed
            if number == 1 and self._policy() is None
            else derive(seed, "stage", self.ready.plan.stages[number - 1].name)
        )

    def _recall(self, place: Path, chain: Chain, totals: Mapping[str, Any]) -> train.Trained:
        """What a stage that was trained before came to, the model and its mitigations with it."""
        states = load_end(place / "end", chain.net)
        if states.keys() != chain.active.keys() or totals.keys() != {"steps", "loss", "seconds", "tokens"}:
            what = "it was written with other mitigations, or by another version"
            raise RunError(str(place / "end"), what, "take this folder away, and the stage is trained again")
        for name, state in states.items():
            chain.active[name].load_state_dict(state)
        return train.Trained(**{**totals, "loss": float("nan") if totals["loss"] is None else totals["loss"]}, log=())

    def _watch(self, chain: Chain, number: int, steps: int, resumed: Path | None) -> watching.Watch | None:
        """What evaluates the stage on its way; None where that is not asked for."""
        stage: Stage = self.ready.data.stages[number - 1].stage
        if stage.train["evaluate_steps"] is None:
            return None
        suites, metrics = foreseen.within(stage, self.ready.plan.suites, self.ready.metrics)
        return watching.Watch(
            stage,
            steps,
            self.folder,
            lambda: self._measured(chain, number, None, suites, metrics),
            self.evaluations[0],
            watching.keeper(chain.net, chain.active),
            lambda kind, **facts: self._tell(kind, number, **facts),
            int(resumed.name.rpartition("-")[2]) if resumed is not None else 0,
        )

    def _retell(self, number: int, name: str) -> None:
        """Tell the listeners of the updates of a stage that was taken over from another arm."""
        for line in (self.folder.stage(name) / "steps.jsonl").read_text(encoding="utf-8").splitlines():
            metrics = json.loads(line)
            self._tell("step", number, step=metrics.pop("step"), metrics=metrics)

    def _forget_steps(self, name: str, resumed: Path | None) -> None:
        """Take out of `steps.jsonl` the updates that are done anew."""
        file = self.folder.stage(name) / "steps.jsonl"
        if file.is_file():
            last = int(resumed.name.rpartition("-")[2]) if resumed is not None else 0
            whole = [line for line in file.read_text(encoding="utf-8").splitlines(keepends=True) if line.endswith("\n")]
            file.write_text("".join(one for one in whole if json.loads(one)["step"] <= last), encoding="utf-8")

    def _keep(self, chain: Chain, trained: train.Trained, name: str, number: int) -> None:
        """Keep what later stages, and people, need of this one."""
        totals = {"steps": trained.steps, "loss": trained.loss, "seconds": trained.seconds, "tokens": trained.tokens}
        states = {key: one.state_dict() for key, one in chain.active.items()}
        try:
            save_end(self.folder.stage(name) / "end", chain.net, states)
        except RunError as error:  # all that the run needs is in memory still
            text = f"{error}; the run goes on, and trains this stage again if it is broken off and resumed"
            self.registry.observe(Event("warning", data={"text": text}))
        # An adapter whose base has earlier ones merged into it would be loaded onto the wrong weights.
        if number < len(self.ready.plan.stages) and model.saves_adapter(chain.net) and not chain.merged:
            model.save(chain.net, self.ready.tokenizer, self.folder.stage(name) / "model")
        self.folder.write(f"stages/{name}/trained.json", totals)

    def _evaluate(self, chain: Chain, number: int) -> None:
        found = self._measured(chain, number, "predictions")
        self.evaluations.append(found)
        self._tell("evaluated", number, evaluations=found)
        if number == 0 and self.ready.location.kind == "run":
            run = Path(self.ready.location.path).parent
            self.earlier, told = onward.carry(run, found, self.spec.document["output"])
            for text in told:
                self._tell("warning", text=text)
        before = len(self.earlier.stages) if self.earlier is not None else 0
        if number < self.scored - before:  # a run that is gone on with may stop again before it is where it was
            return
        names, evaluations = [one.name for one in self.ready.plan.stages], tuple(self.evaluations)
        if self.earlier is None:
            report.write_scores(evaluations, ["base", *names], self.folder.path)
        else:
            report.write_scores(self.earlier.joined(evaluations), self.earlier.named(names), self.folder.path)

    def _measure_variants(self, chain: Chain, number: int) -> None:
        """Measure the other weights that the stage's mitigations offer, e.g. a sweep between two models."""
        for mitigation, variant in chain.variants():
            found = self._measured(chain, number, f"predictions/variants/{mitigation}-{variant}")
            known = self.evaluations if self.earlier is None else self.earlier.joined(self.evaluations)
            scores = variants.scored(found, known, self.ready.metrics, seed=self.ready.plan.seed)
            stage = self.ready.plan.stages[number - 1].name
            self.variants.append({"stage": stage, "mitigation": mitigation, "variant": variant, "scores": scores})
            self._tell("variant", number, mitigation=mitigation, variant=variant, evaluations=found)
            self.folder.write("variants.json", {"variants": self.variants})

    def _measured(
        self,
        chain: Chain,
        number: int,
        folder: str | None,
        suites: Sequence[Suite] | None = None,
        metrics: Mapping[str, Mapping[str, Metric]] | None = None,
    ) -> tuple[Evaluation, ...]:
        """folder: None: in the midst of a stage, of which nothing is kept and no phase is told."""
        planned = self.ready.plan
        # Without the adapter that is to be trained, the base model's answers are those of every other arm.
        began = number == 0 and self._policy() is None
        untrained = model.base(chain.net) if began else contextlib.nullcontext()
        with untrained, model.computation(chain.net, planned.train["precision"]):
            return evaluate.evaluate(
                chain.net,
                self.ready.tokenizer,
                self.ready.template,
                planned.suites if suites is None else suites,
                self.ready.data.suites,
                self.ready.metrics if metrics is None else metrics,
                stage=number,
                seed=planned.seed,
                max_length=self.ready.longest,
                templates=self.ready.templates,
                folder=None if folder is None else self.folder.path / folder,
                base=self._base(chain) if number or self._policy() else None,
                progress=silent if folder is None else progress_of(self.registry),
            )

    def _base(self, chain: Chain) -> Callable[[], AbstractContextManager[Any]] | None:
        """How to have the base model, for metrics that read it; None where there are none."""
        if not any(one.reads == "base" for suite in self.ready.metrics.values() for one in suite.values()):
            return None
        location = self._first()
        if (
            model.is_adapted(chain.net)
            and not chain.merged
            and (self._policy() is None or model.digest(chain.net) == location.digest)
        ):
            return lambda: model.base(chain.net)
        if self.untouched is None:
            self.untouched = self._load(location)
        return lambda: contextlib.nullcontext(self.untouched)

    def _policy(self) -> str | None:
        return onward.policy(self.spec, self.ready.location, self.ready.plan.stages[0].adapter)

    def _first(self) -> model.Location:
        """The model that all training began with, that of earlier runs included."""
        own, output = self.ready.plan.model, self.spec.document["output"]
        return onward.first(self.ready.location, own, output, progress_of(self.registry))

    def _load(self, location: model.Location | None = None) -> Any:
        planned = self.ready.plan
        return model.load(
            location or self.ready.location,
            planned.model,
            precision=planned.train["precision"],
            progress=progress_of(self.registry),
        )

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
