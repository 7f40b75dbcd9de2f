"""Stages that arms have in common are trained once: the end of one is taken over by the arms that begin alike.

Knows plans, and the folders of arms. A stage taken over is one that was trained in this experiment with the same seed,
model, template, sources, settings and mitigations after the same stages, so that training it again would give the same
weights; going on behind it is what `--resume` does, and equal to not having stopped (decision 008).
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterable
from pathlib import Path

from harness import plan
from harness.contracts import Mitigation, Plan, Stage
from harness.registry import Registry


def alike(one: Plan, other: Plan, registry: Registry) -> int:
    """How many stages, from the first, are the same in both plans, so that one end serves both.

    A stage with `evaluate_steps` counts only where the suites are the same too: what they measure may end it.
    A stage that offers variants to be measured (`wise_ft`) is never shared: they are made of what it remembers.
    """

    def begin(planned: Plan) -> tuple[object, ...]:
        return planned.seed, planned.model, planned.template, planned.sources

    if begin(one) != begin(other):
        return 0
    count = 0
    for stage, same in zip(one.stages, other.stages, strict=False):
        if stage != same or plan.of_stage(one, stage) != plan.of_stage(other, same) or _varies(one, stage, registry):
            break
        if stage.train["evaluate_steps"] is not None and one.suites != other.suites:
            break  # what is measured on the way may end the stage
        count += 1
    return count


def take_over(arms: Path, place: Path, planned: Plan, others: Iterable[tuple[str, Plan]], registry: Registry) -> int:
    """Give a new arm's folder the ends of the stages that an earlier arm trained for it too. Returns how many.

    arms: the folder that holds all arms. place: the arm's own. others: name -> plan of the arms before it. The large
    files are linked where the file system can, and copied where not.
    """
    best, donor = 0, arms
    for name, other in others:
        count = alike(planned, other, registry)
        ends = [(arms / name / "stages" / one.name / "end").is_dir() for one in planned.stages[:count]]
        count = ends.index(False) if False in ends else count
        if count > best:
            best, donor = count, arms / name
    for number, stage in enumerate(planned.stages[:best], start=1):
        own, its = place / "stages" / stage.name, donor / "stages" / stage.name
        shutil.rmtree(own, ignore_errors=True)  # what an arm left that was broken off right here
        shutil.copytree(its / "end", own / "end", copy_function=_linked)
        for kept in ("trained.json", "steps.jsonl", "evaluations.jsonl"):
            if (its / kept).is_file():  # a stage that was not watched has no evaluations of its own
                shutil.copy2(its / kept, own / kept)
        (place / "predictions").mkdir(parents=True, exist_ok=True)
        for file in (donor / "predictions").glob(f"*-stage{number}.jsonl"):
            shutil.copy2(file, place / "predictions" / file.name)
    return best


def clear(arms: Path) -> None:
    """Delete the ends that finished arms kept for others; those of unfinished ones are what they go on from."""
    for arm in arms.iterdir():
        if (arm / "report.json").is_file():
            for end in arm.glob("stages/*/end"):
                shutil.rmtree(end, ignore_errors=True)


def _varies(planned: Plan, stage: Stage, registry: Registry) -> bool:
    made = plan.mitigations(plan.of_stage(planned, stage), registry)
    return any(type(one).variants is not Mitigation.variants for _, one in made)


def _linked(source: str, target: str) -> str:
    with contextlib.suppress(OSError):
        os.link(source, target)
        return target
    return shutil.copy2(source, target)
