"""The doors of the room: run a spec, go on with a run, run its arms, measure a model without training it."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from harness.distributed.processes import ALONE, Ranks
from harness.errors import HarnessError, raise_all
from harness.evaluation import context, evaluate, scoring
from harness.model import load as load_module
from harness.model import locate, save
from harness.registry import Registry
from harness.report.arm_comparison import Experiment
from harness.report.run_report import Report
from harness.runner import arms as arms_runner
from harness.runner import continue_run, resume
from harness.runner.folder import RunFolder
from harness.runner.main_process import walk
from harness.runner.metadata import refuse_other_processes
from harness.runner.prepare import Prepared, find, prepare, progress_of
from harness.spec import arms
from harness.spec.arms import Arm
from harness.spec.spec import Spec
from harness.types import Evaluation, Event
from harness.utils.find_run import SCHEME
from harness.utils.json_files import listed

Load = Callable[[Sequence[str]], Spec]
"""The spec with more overrides, without its arms."""


def run(spec: Spec, registry: Registry, ranks: Ranks = ALONE) -> Report:
    """Run a spec from its data to its report. The folder of the run stays, however the run ends.

    ranks: the processes that train it together, of which this is the main one; the others `follow`.

    Raises HarnessError for bad input before the run's folder is made, RunError for what fails after.
    """
    ready = prepare(spec, registry, ranks=ranks)
    found = find(spec, ready, registry)
    raise_all(found.failures)
    folder = RunFolder.new(spec.document["output"], spec.document["name"])
    with folder.locked():
        return walk(spec, registry, ready, found, folder, ranks=ranks)


def again(spec: Spec, registry: Registry, place: Path, ranks: Ranks = ALONE) -> Report:
    """Go on with a run that was broken off: what it finished is read, not done anew.

    spec: the run's own, from its folder. The result equals that of the run had it not been broken off, bit for bit on
    a CPU. Of a run that was killed after its report, what its end lacks is done (see `closing`). Raises HarnessError
    when the run is finished, or when its data or the number of processes is no longer what it began with.
    """
    folder = RunFolder(place)
    with folder.locked():
        if (place / "report.json").is_file():
            closed = resume.close(spec, registry, folder)
            if closed is None:
                raise HarnessError(str(place), "the run is finished", "start another one, or look at its report")
            return closed
        refuse_other_processes(folder, ranks.count)
        ready = prepare(spec, registry, ranks=ranks)
        found = find(spec, ready, registry)
        raise_all(found.failures)
        return walk(spec, registry, ready, found, folder, again=True, ranks=ranks)


def experiment(
    spec: Spec,
    registry: Registry,
    load: Load,
    *,
    names: Sequence[str] = (),
    place: Path | None = None,
    ranks: Ranks = ALONE,
) -> Experiment:
    """Run the arms of a spec, or those of these names, and compare all that have a result.

    load: the spec anew with an arm's overrides. place: the folder of an experiment that is gone on with.
    Every arm's spec and data are proven before the first one trains. With several processes the first arm that fails is
    the last one that runs: the others cannot know where it was. Raises HarnessError and RunError as `run`.
    """
    every = arms.expand(spec.document["arms"], spec.where(("arms",)))
    specs = [(arm, _spec_of(arm, load)) for arm in arms.chosen(every, names)]
    if place is None:
        prove(specs, registry, ranks)
        folder = RunFolder.new(spec.document["output"], spec.document["name"])
        folder.write("spec.json", spec.document)
    else:
        folder = RunFolder(place)
        for arm in every:
            refuse_other_processes(RunFolder(place / "arms" / arm.name), ranks.count)
    with folder.locked():
        runner = _arm_runner(registry, ranks)
        return arms_runner.run_arms(spec, specs, registry, folder, runner, ranks=ranks)


def prove(specs: Sequence[tuple[Arm, Spec]], registry: Registry, ranks: Ranks = ALONE) -> None:
    """Prepare and prove the data of every arm. Raises HarnessError that names the arm.

    ranks: the processes that are to train, for an update takes rows for each.
    """
    for number, (arm, own) in enumerate(specs, start=1):
        facts, began = {"arm": arm.name, "number": number, "of": len(specs)}, time.monotonic()
        registry.observe(Event("arm_preparing", data=facts))
        with arms.named(arm):
            ready = prepare(own, registry, ranks=ranks)
            raise_all(find(own, ready, registry).failures)
        rows = {key: sum(one.get(key, 0) for one in ready.data.counts.values()) for key in ("used", "evaluated")}
        registry.observe(Event("arm_prepared", data={**facts, **rows, "seconds": time.monotonic() - began}))
    registry.observe(Event("arms_prepared"))


def _spec_of(arm: Arm, load: Load) -> Spec:
    with arms.named(arm):
        return load(arm.overrides())


def measure(spec: Spec, registry: Registry, place: Path | None) -> tuple[Path, tuple[Evaluation, ...]]:
    """Evaluate a model on the spec's suites, and train nothing.

    place: the folder of a finished run, whose model is measured; what it answered before is not asked again, and stays
    as it was: new answers stand in `measured/`. None: the spec's base model, in a new folder. Returns the folder and
    the evaluations. Raises HarnessError and RunError.
    """
    for override in spec.overrides if place is not None else ():
        if override.partition("=")[0].partition(".")[0] == "model":
            raise HarnessError(f"--set {override}", "the model of a run is the one that it made", "leave it out")
    if place is not None and not (place / "model").is_dir():
        hint = f"let it come to its end: harness run --resume {place}"
        if (place / "arms").is_dir():
            hint = f"name the folder of one of its arms, below {place / 'arms'}"
        raise HarnessError(str(place), "there is no model of a finished run here", hint)
    ready = prepare(spec, registry, mixed=False)
    folder = RunFolder(place) if place is not None else RunFolder.new(spec.document["output"], spec.document["name"])
    with folder.locked():
        if place is None:
            folder.write("spec.json", spec.document)
        stage = len(ready.plan.stages) if place is not None else 0
        answers = folder.path / "predictions" if place is None else _answers(place, stage)
        net, base = _measured_model(spec, ready, registry, place)
        with load_module.computation(net, ready.plan.train["precision"]):
            found = evaluate.evaluate(
                net,
                ready.tokenizer,
                ready.template,
                ready.plan.suites,
                ready.data.suites,
                ready.metrics,
                stage=stage,
                seed=ready.plan.seed,
                max_length=ready.longest,
                templates=ready.templates,
                folder=answers,
                base=base,
                progress=progress_of(registry),
            )
        folder.write(
            "measured.json" if place is None else "measured/scores.json", {"stage": stage, "suites": listed(found)}
        )
    scoring.require(found)
    return folder.path, found


def _answers(place: Path, stage: int) -> Path:
    """The folder for what a finished run is asked again; begins with what it answered after its last stage."""
    folder = place / "measured" / "predictions"
    folder.mkdir(parents=True, exist_ok=True)
    for file in (place / "predictions").glob(f"*-stage{stage}.jsonl"):
        if not (folder / file.name).exists():
            shutil.copyfile(file, folder / file.name)
    return folder


def _measured_model(
    spec: Spec, ready: Prepared, registry: Registry, place: Path | None
) -> tuple[Any, context.Base | None]:
    """The model of a finished run, or the base model, and how to have the base where a metric compares with it."""

    def load(location: locate.Location, settings: Mapping[str, Any]) -> Any:
        precision = ready.plan.train["precision"]
        return load_module.load(location, settings, precision=precision, progress=progress_of(registry))

    if place is None:
        return load(ready.location, ready.plan.model), None
    reads_base = any(one.reads == "base" for suite in ready.metrics.values() for one in suite.values())
    if (place / "model" / "adapter_config.json").is_file() and ready.location.kind == "run":
        settings = {**ready.plan.model, "path": f"{SCHEME}{place.resolve()}", "revision": None}
        net = load(locate.resolve(settings, progress=progress_of(registry)), settings)
        return net, (lambda: save.base(net)) if reads_base else None
    if (place / "model" / "adapter_config.json").is_file():
        net = _adapted(load(ready.location, ready.plan.model), place / "model")
        return net, (lambda: save.base(net)) if reads_base else None
    settings = {**ready.plan.model, "path": str(place / "model"), "revision": None}
    net = load(locate.resolve(settings, progress=progress_of(registry)), settings)
    if not reads_base:
        return net, None
    untouched = load(continue_run.first(spec, ready, progress_of(registry)), ready.plan.model)
    return net, lambda: nullcontext(untouched)


def _adapted(net: Any, folder: Path) -> Any:
    from peft import PeftModel
    from safetensors import SafetensorError

    try:
        return PeftModel.from_pretrained(net, str(folder)).eval()
    except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as error:
        what = f"the adapter cannot be put on the model ({type(error).__name__}: {error})"
        raise HarnessError(str(folder), what, "bring back the base model that the run began with") from error


def _arm_runner(registry: Registry, ranks: Ranks) -> arms_runner.RunArm:
    def run_arm(arm: Arm, own: Spec, place: Path, again: bool, parent: str | None, shared: int) -> None:
        ready = prepare(own, registry, ranks=ranks)
        found = find(own, ready, registry)
        raise_all(found.failures)
        folder = RunFolder(place)
        with folder.locked():
            facts = {"name": arm.name, "changes": dict(arm.changes)}
            walk(own, registry, ready, found, folder, again=again, arm=facts, parent=parent, shared=shared, ranks=ranks)

    return run_arm
