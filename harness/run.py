"""The one room that knows the order: it calls each room once and tells everybody what happens.

spec → plan → data → model → evaluate → (train → evaluate) per stage → report
"""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from harness import data, environment, evaluate, model, plan, report, train
from harness.contracts import Evaluation, Event, Metric, Mitigation, Plan, Progress, Template
from harness.data import encode
from harness.errors import HarnessError, RunError
from harness.registry import Registry
from harness.report import Report
from harness.spec import Spec
from harness.track import Tracker


class ModelUnreachable(HarnessError):
    """The hub model that the spec names cannot be had from here."""


@dataclass(frozen=True)
class Prepared:
    """All that is known before a model is loaded: the plan, its data, and the components that it names."""

    plan: Plan
    location: model.Location
    tokenizer: Any
    template: Template
    data: data.Prepared
    metrics: Mapping[str, Mapping[str, Metric]]


def prepare(spec: Spec, registry: Registry, *, mixed: bool = True) -> Prepared:
    """Everything up to the proven data. Loads no model; makes no folder. Raises HarnessError for bad input.

    mixed: False leaves the shares out, so that rows can be looked at whose mixture cannot be met.
    """
    progress = _progress(registry)
    planned = plan.make(spec, registry)
    if not mixed:
        whole = [replace(one, parts=tuple(replace(part, share=None) for part in one.parts)) for one in planned.stages]
        planned = replace(planned, stages=tuple(whole))
    for text in planned.warnings:
        registry.observe(Event("warning", data={"text": text}))
    metrics = {
        suite.name: {name: registry.make("metrics", name, options) for name, options in suite.metrics.items()}
        for suite in planned.suites
    }
    template = registry.make("templates", *planned.template)
    kind: type[HarnessError] = HarnessError
    try:
        location = model.resolve(planned.model, progress=progress)
        if location.kind == "hub":
            kind = ModelUnreachable
        tokenizer = model.tokenizer(location, planned.model)
    except HarnessError as error:
        raise kind(f"{spec.where(('model', 'path'))}: {error.where}", error.what, error.hint) from error
    model.dtype(planned.train["precision"], model.device())
    sources = {name: registry.make("sources", *given) for name, given in planned.sources.items()}
    also = plan.sources_named(spec, "mitigations")
    prepared = data.prepare(planned, sources, template, tokenizer, also=also, progress=progress)
    for text in prepared.warnings:
        registry.observe(Event("warning", data={"text": text}))
    return Prepared(planned, location, tokenizer, template, prepared, metrics)


def run(spec: Spec, registry: Registry) -> Report:
    """Run a spec from its data to its report. The folder of the run stays, however the run ends.

    Raises HarnessError for bad input before the run's folder is made, RunError for what fails after.
    """
    ready = prepare(spec, registry)
    folder = _folder(spec)
    tracker = Tracker(
        spec.document["track"],
        ready.plan.name,
        warn=lambda text: registry.observe(Event("warning", data={"text": text})),
    )
    registry.manager.register(tracker, name="track")
    try:
        try:
            return _run(spec, registry, ready, folder, tracker)
        except OSError as error:
            what = f"a file of the run cannot be written or read: {error}"
            raise RunError(str(folder), what, "free space or mend the folder, and run again") from error
    except BaseException as error:
        text = "interrupted" if isinstance(error, KeyboardInterrupt) else f"{type(error).__name__}: {error}"
        registry.observe(Event("run_failed", data={"error": text, "folder": str(folder)}))
        raise
    finally:
        registry.manager.unregister(tracker)


def _run(spec: Spec, registry: Registry, ready: Prepared, folder: Path, tracker: Tracker) -> Report:
    started = time.monotonic()
    planned, progress = ready.plan, _progress(registry)
    described = _environment(spec, registry, ready)
    _write(folder / "spec.json", spec.document)
    _write(folder / "environment.json", described)
    facts = {"name": planned.name, "id": folder.name, "folder": str(folder), "spec": spec.document, "plan": planned}
    registry.observe(Event("run_started", data={**facts, "environment": described}))
    found = _data_facts(ready)
    _write(folder / "data.json", {**found, "stages": [one.name for one in planned.stages]})
    registry.observe(Event("data", data=found))

    precision = planned.train["precision"]
    net = model.load(ready.location, planned.model, precision=precision, progress=progress)
    train.seed_mitigations(planned.seed)
    mitigations: dict[str, Mitigation] = dict(plan.mitigations(planned.mitigations, registry))
    for mitigation in mitigations.values():
        net = mitigation.model(net)
    model.promote(net)
    with model.base(net):
        evaluations = [_evaluate(net, ready, 0, folder, registry)]
    names = ["base", *(one.name for one in planned.stages)]
    report.write_scores(evaluations, names, folder)
    for number, stage_data in enumerate(ready.data.stages, start=1):
        stage = stage_data.stage
        registry.observe(Event("stage_started", number, {"stage": stage, "steps": stage_data.steps()}))
        with model.computation(net, precision):
            for mitigation in mitigations.values():
                mitigation.begin_stage(stage, net, ready.data.rows)
        trained = train.train(
            net,
            ready.tokenizer,
            stage_data,
            mitigations,
            seed=planned.seed,
            folder=folder / "stages" / stage.name,
            progress=progress,
            on_step=_step(registry, number, folder / "stages" / stage.name),
        )
        with model.computation(net, precision):
            for mitigation in mitigations.values():
                mitigation.end_stage(stage, net, stage_data.rows)
        evaluations.append(_evaluate(net, ready, number, folder, registry))
        report.write_scores(evaluations, names, folder)
        totals = {"steps": trained.steps, "loss": trained.loss, "seconds": trained.seconds, "tokens": trained.tokens}
        _write(folder / "stages" / stage.name / "trained.json", totals)
        registry.observe(Event("stage_finished", number, {"stage": stage, "trained": trained, "folder": str(folder)}))
    known = {**facts, "seconds": time.monotonic() - started, "uri": tracker.uri}
    made = report.make(planned, evaluations, ready.metrics, seed=planned.seed, run=known)
    made.write(folder)
    model.save(net, ready.tokenizer, folder / "model")
    seconds = time.monotonic() - started
    registry.observe(Event("run_finished", len(planned.stages), {"report": made, "seconds": seconds}))
    return made


def _evaluate(net: Any, ready: Prepared, stage: int, folder: Path, registry: Registry) -> tuple[Evaluation, ...]:
    with model.computation(net, ready.plan.train["precision"]):
        evaluations = evaluate.evaluate(
            net,
            ready.tokenizer,
            ready.template,
            ready.plan.suites,
            ready.data.suites,
            ready.metrics,
            stage=stage,
            seed=ready.plan.seed,
            max_length=max(one.train["max_length"] for one in ready.plan.stages),
            folder=folder / "predictions",
            progress=_progress(registry),
        )
    registry.observe(Event("evaluated", stage, {"evaluations": evaluations}))
    return evaluations


def _step(registry: Registry, number: int, folder: Path) -> Callable[[int, Mapping[str, float]], None]:
    """Writes each logged update to the run's folder, whatever the tracker does, and tells the listeners."""
    folder.mkdir(parents=True, exist_ok=True)

    def step(step: int, metrics: Mapping[str, float]) -> None:
        with (folder / "steps.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, **metrics}) + "\n")
        registry.observe(Event("step", number, {"step": step, "metrics": metrics}))

    return step


def _progress(registry: Registry) -> Progress:
    def progress(phase: str, done: int, total: int, note: str = "", unit: str = "") -> None:
        facts = {"phase": phase, "done": done, "total": total, "note": note, "unit": unit}
        registry.observe(Event("progress", data=facts))

    return progress


def _data_facts(ready: Prepared) -> dict[str, Any]:
    stages = ready.data.stages
    return {
        "counts": ready.data.counts,
        "stages": [one.stage for one in stages],
        "shares": [one.shares for one in stages],
        "efficiency": [one.efficiency for one in stages],
        "digests": ready.data.digests,
        "template": encode.fingerprint(ready.template, ready.tokenizer),
        "warnings": [*ready.plan.warnings, *ready.data.warnings],
    }


def _environment(spec: Spec, registry: Registry, ready: Prepared) -> dict[str, Any]:
    location = ready.location
    return {
        **environment.describe(registry, spec.file.resolve().parent),
        "model": {"path": location.path, "kind": location.kind, "digest": location.digest},
        "data": dict(ready.data.digests),
        "template": encode.fingerprint(ready.template, ready.tokenizer),
    }


def _folder(spec: Spec) -> Path:
    stamp = f"{datetime.now():%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"
    folder = Path(spec.document["output"]) / f"{spec.document['name']}-{stamp}"
    try:
        folder.mkdir(parents=True)
    except OSError as error:
        what = f"the folder of the run cannot be made: {error.strerror or error}"
        raise HarnessError(
            f"output: {folder}", what, 'name a folder in "output" that can be written and has space'
        ) from error
    return folder


def _write(file: Path, value: Any) -> None:
    file.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
