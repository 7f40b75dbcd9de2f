"""Arms: one spec in several variants, each a run of its own in one folder, compared when they have run.

Knows how arms share what they can: the tokenised rows, by the cache that is keyed by their content; the base model's
answers, which are taken over from the arm before and used again where their key says that they are the same; and the
first stages that they have in common (`sharing`).
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from harness.distributed.processes import SINGLE_PROCESS, Processes
from harness.errors import HarnessError, RunError
from harness.interfaces.metric import Metric
from harness.interfaces.mitigation import Mitigation
from harness.registry import Registry
from harness.report import finished_run
from harness.report.arm_comparison import ArmComparison, ComparisonSettings, compare_arms
from harness.report.html import write
from harness.runner import resume
from harness.runner.folder import RunFolder
from harness.runner.prepare import write_report_page
from harness.spec import arms as arms_of
from harness.spec import plan
from harness.spec.arms import Arm
from harness.spec.metric_factory import create_metric
from harness.spec.spec import Spec
from harness.tracking.experiment_tracker import ExperimentTracker
from harness.types import Event, Plan, Stage


def shared_stage_count(first: Plan, second: Plan, registry: Registry) -> int:
    """How many stages, from the first, are the same in both plans, so that one end serves both.

    A stage with `evaluate_steps` counts only where the suites are the same too: what they measure may end it.
    A stage that offers variants to be measured (`wise_ft`) is never shared: they are made of what it remembers.
    """

    def begin(planned: Plan) -> tuple[object, ...]:
        return planned.seed, planned.model, planned.template, planned.sources

    if begin(first) != begin(second):
        return 0
    count = 0
    for stage, same in zip(first.stages, second.stages, strict=False):
        if (
            stage != same
            or plan.stage_mitigations(first, stage) != plan.stage_mitigations(second, same)
            or _offers_variants(first, stage, registry)
        ):
            break
        if stage.train["evaluate_steps"] is not None and first.suites != second.suites:
            break  # what is measured on the way may end the stage
        count += 1
    return count


def reuse_stages(
    arms_folder: Path, arm_folder: Path, plan: Plan, others: Iterable[tuple[str, Plan]], registry: Registry
) -> int:
    """Give a new arm's folder the ends of the stages that an earlier arm trained for it too. Returns how many.

    arms_folder: the folder that holds all arms. arm_folder: the arm's own. others: name -> plan of the arms before it.
    The large files are linked where the file system can, and copied where not.
    """
    best, donor = 0, arms_folder
    for name, other in others:
        count = shared_stage_count(plan, other, registry)
        ends = [(arms_folder / name / "stages" / one.name / "end").is_dir() for one in plan.stages[:count]]
        count = ends.index(False) if False in ends else count
        if count > best:
            best, donor = count, arms_folder / name
    for number, stage in enumerate(plan.stages[:best], start=1):
        own, its = arm_folder / "stages" / stage.name, donor / "stages" / stage.name
        shutil.rmtree(own, ignore_errors=True)  # what an arm left that was broken off right here
        shutil.copytree(its / "end", own / "end", copy_function=_link_or_copy)
        for kept in ("trained.json", "steps.jsonl", "evaluations.jsonl"):
            if (its / kept).is_file():  # a stage that was not watched has no evaluations of its own
                shutil.copy2(its / kept, own / kept)
        (arm_folder / "predictions").mkdir(parents=True, exist_ok=True)
        for file in (donor / "predictions").glob(f"*-stage{number}.jsonl"):
            shutil.copy2(file, arm_folder / "predictions" / file.name)
    return best


def delete_snapshots(arms_folder: Path) -> None:
    """Delete the ends that finished arms kept for others; those of unfinished ones are what they go on from."""
    for arm in arms_folder.iterdir():
        if (arm / "report.json").is_file():
            for end in arm.glob("stages/*/end"):
                shutil.rmtree(end, ignore_errors=True)


def _offers_variants(run_plan: Plan, stage: Stage, registry: Registry) -> bool:
    made = plan.create_mitigations(plan.stage_mitigations(run_plan, stage), registry)
    return any(type(one).variants is not Mitigation.variants for _, one in made)


def _link_or_copy(source: str, target: str) -> str:
    with contextlib.suppress(OSError):
        os.link(source, target)
        return target
    return shutil.copy2(source, target)


RunArm = Callable[[Arm, Spec, Path, bool, str | None, int], None]
"""Run an arm's spec in a folder; True: it is gone on with; the MLflow id of the experiment's run, if it has one; how
many of its first stages are to leave their ends for other arms."""


def run_arms(
    spec: Spec,
    specs: Sequence[tuple[Arm, Spec]],
    registry: Registry,
    folder: RunFolder,
    run_arm: RunArm,
    *,
    processes: Processes = SINGLE_PROCESS,
) -> ArmComparison:
    """Run every arm that has no result yet, and compare all that have one.

    spec: with its arms. specs: each arm that is to run with the spec that it makes. An arm that fails is named in the
    comparison, and the next one runs. Raises RunError, after everything is saved, when an arm failed.
    processes: the processes that train; of several an arm that fails ends all at once.
    """
    every = arms_of.expand_arms(spec.document["arms"], spec.where(("arms",)))
    tracker = ExperimentTracker(
        spec.document["track"],
        spec.document["name"],
        folder.path,
        lambda text: registry.emit(Event("warning", data={"text": text})),
        resume_info=folder.read_json("mlflow.json"),
    )
    tracker.start(spec.document, [arm.name for arm in every])
    try:
        with processes.on_abort(lambda why: tracker.fail(RunError(str(folder.path), why))):
            return _run_arms(
                spec, every, specs, registry, folder, run_arm, tracker, single_process=processes.world_size == 1
            )
    except BaseException as error:
        tracker.fail(error)
        raise


def _run_arms(
    spec: Spec,
    arms: Sequence[Arm],
    specs: Sequence[tuple[Arm, Spec]],
    registry: Registry,
    folder: RunFolder,
    run_arm: RunArm,
    tracker: ExperimentTracker,
    *,
    single_process: bool,
) -> ArmComparison:
    failed: dict[str, str] = {}
    plans = {arm.name: plan.build_plan(own, registry) for arm, own in specs}
    begun: dict[str, Plan] = {}
    for number, (arm, own) in enumerate(specs, start=1):
        place = folder.path / "arms" / arm.name
        registry.emit(Event("arm_started", data={"arm": arm.name, "number": number, "of": len(specs)}))
        if (place / "report.json").is_file():
            why = _finish_interrupted_arm(arm, own, registry, place, tracker.run_id)
            if why is not None:
                failed[arm.name] = why
            registry.emit(Event("arm_finished", data={"arm": arm.name, "again": True}))
            begun[arm.name] = plans.pop(arm.name)
            continue
        again = (place / "spec.json").is_file()
        if not again:
            _copy_base_predictions(folder.path / "arms", place)
            reuse_stages(folder.path / "arms", place, plans[arm.name], begun.items(), registry)
        begun[arm.name] = plans.pop(arm.name)
        shared = max((shared_stage_count(begun[arm.name], other, registry) for other in plans.values()), default=0)
        try:
            run_arm(arm, own, place, again, tracker.run_id, shared)
        except HarnessError as error:  # its spec and data were proven: what fails now is this arm's alone
            if not single_process:
                raise
            failed[arm.name] = error.what
            registry.emit(Event("warning", data={"text": f"the arm {arm.name!r} failed: {error}"}))
            continue
        registry.emit(Event("arm_finished", data={"arm": arm.name, "again": False}))
    delete_snapshots(folder.path / "arms")
    trouble = _failure_error(failed, folder)
    if trouble is not None and not any((folder.path / "arms" / arm.name / "report.json").is_file() for arm in arms):
        raise trouble  # there is nothing to compare
    made = compare_finished_arms(spec, arms, registry, folder.path, failed)
    made.write(folder.path)
    write_report_page(registry, write.write_experiment_page, folder.path)
    if trouble is None:
        tracker.finish(made)
    registry.emit(Event("arms_finished", data={"experiment": made, "folder": str(folder.path)}))
    if trouble is not None:
        raise trouble
    return made


def _finish_interrupted_arm(arm: Arm, arm_spec: Spec, registry: Registry, path: Path, parent: str | None) -> str | None:
    """Do what the end of an arm lacks that was killed after its report; why it failed, where that shows now."""
    folder = RunFolder(path)
    try:
        with folder.locked():
            resume.finish_interrupted_run(
                arm_spec, registry, folder, arm={"name": arm.name, "changes": dict(arm.changes)}, parent=parent
            )
    except RunError as error:
        return error.what
    except HarnessError as error:  # its result is there, and is compared
        registry.emit(Event("warning", data={"text": f"the end of the arm {arm.name!r}: {error}"}))
    return None


def _failure_error(failed: Mapping[str, str], folder: RunFolder) -> RunError | None:
    if not failed:
        return None
    first = next(iter(failed))
    hint = f"mend it and go on: harness run --resume {folder.path}"
    return RunError(str(folder.path), f"{len(failed)} arm(s) failed, {first!r} first: {failed[first]}", hint)


def compare_finished_arms(
    spec: Spec, arms: Sequence[Arm], registry: Registry, folder: Path, failed: dict[str, str] | None = None
) -> ArmComparison:
    """The comparison of all arms of an experiment that have a result."""
    found, missing = {}, dict(failed or {})
    for arm in arms:
        place = folder / "arms" / arm.name
        if (place / "report.json").is_file():
            found[arm.name] = finished_run.load_finished_run(place)
        else:
            missing.setdefault(arm.name, "it has not run to its end")
    given: dict[str, Any] = spec.document["arms"]
    return compare_arms(
        spec.document["name"],
        folder,
        found,
        _create_arm_metrics(found, given["baseline"], registry),
        ComparisonSettings(given["baseline"], given["gain"], given["forgetting"], given["joint"]),
        seed=spec.document["seed"],
        missing=missing,
    )


def _create_arm_metrics(
    runs: Mapping[str, finished_run.FinishedRun], baseline: str | None, registry: Registry
) -> dict[str, dict[str, Metric]]:
    """The metrics of every suite that an arm has: the baseline's own, and those that other arms add to them."""
    made: dict[str, dict[str, Metric]] = {}
    for _, run in sorted(runs.items(), key=lambda one: one[0] != baseline):
        for suite, given in run.spec["evaluate"].items():
            for name, options in given["metrics"].items():
                if name not in made.setdefault(suite, {}):
                    made[suite][name] = create_metric(registry, name, options, lang=given["lang"])
    return made


def _copy_base_predictions(arms_folder: Path, arm_folder: Path) -> None:
    """Copy the base model's answers of an arm that has them; their keys decide whether they are used again."""
    for other in sorted(arms_folder.glob("*/predictions")):
        files = sorted(other.glob("*-stage0.jsonl"))
        if files and (other.parent / "report.json").is_file():
            (arm_folder / "predictions").mkdir(parents=True, exist_ok=True)
            for file in files:
                shutil.copy2(file, arm_folder / "predictions" / file.name)
            return
