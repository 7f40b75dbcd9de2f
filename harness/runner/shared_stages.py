"""First stages that several arms of an experiment have in common: they are trained once, and their snapshots reused."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from harness.evaluation.predictions import stored_files
from harness.interfaces.mitigation import Mitigation
from harness.interfaces.mode import Mode
from harness.registry import Registry
from harness.runner import resume
from harness.spec import plan as plan_module
from harness.training.stage_schedule import evaluates_within
from harness.types import Plan, Stage


@dataclass(frozen=True)
class SharedStages:
    """The first stages that an arm has in common with other arms of the same experiment.

    Attributes:
        earlier: Name of an earlier arm -> number of common first stages; only arms that have some.
        to_keep: Number of first stages whose snapshots stay, for later arms.
    """

    earlier: Mapping[str, int] = field(default_factory=dict)
    to_keep: int = 0

    @property
    def donor(self) -> str | None:
        """The earlier arm with the most common stages, the first of several; None if there is none."""
        return max(self.earlier, key=lambda name: self.earlier[name], default=None)


def find_shared_stages(plans: Mapping[str, Plan], name: str, registry: Registry) -> SharedStages:
    """Return which first stages an arm has in common with the others.

    Args:
        plans: Name of an arm -> its plan, in the order in which the arms run.
        name: The arm.
        registry: The components.
    """
    names = list(plans)
    index = names.index(name)
    counts = {other: shared_stage_count(plans[name], plans[other], registry) for other in names if other != name}
    return SharedStages(
        {other: counts[other] for other in names[:index] if counts[other]},
        max((counts[other] for other in names[index + 1 :]), default=0),
    )


def shared_stage_count(first: Plan, second: Plan, registry: Registry) -> int:
    """Return how many first stages two plans have in common, so that one snapshot serves both.

    A stage with `evaluate_steps` counts only if the suites are equal too: their scores may end or change it. A stage
    whose mitigations offer weight variants never counts: the variants depend on what the mitigation remembers.
    """
    if (first.seed, first.model, first.template, first.sources) != (
        second.seed, second.model, second.template, second.sources,
    ):  # fmt: skip
        return 0
    if first.mode != second.mode and any(_chooses_rows(plan, registry) for plan in (first, second)):
        return 0
    count = 0
    for first_stage, second_stage in zip(first.stages, second.stages, strict=False):
        if (
            first_stage != second_stage
            or plan_module.stage_mitigations(first, first_stage) != plan_module.stage_mitigations(second, second_stage)
            or _offers_variants(first, first_stage, registry)
        ):
            break
        if evaluates_within(first_stage.train) and first.suites != second.suites:
            break
        count += 1
    return count


def _chooses_rows(plan: Plan, registry: Registry) -> bool:
    """Return whether the mode selects or orders rows, which its stages do not show."""
    mode = type(registry.create("modes", *plan.mode))
    return mode.select is not Mode.select or mode.order is not Mode.order


def reuse_stages(arms_folder: Path, arm_folder: Path, plan: Plan, earlier: Mapping[str, int]) -> int:
    """Copy the snapshots of first stages that an earlier arm has trained to the folder of a new arm.

    Large files are hard links where the file system supports them.

    Args:
        arms_folder: The folder that holds all arms.
        arm_folder: The folder of the new arm.
        plan: The plan of the new arm.
        earlier: Name of each earlier arm -> number of common first stages; see `SharedStages.earlier`.

    Returns:
        The number of stages that were copied.
    """
    best_count, donor = 0, arms_folder
    for name, shared_count in earlier.items():
        stages = plan.stages[:shared_count]
        has_snapshot = [(arms_folder / name / "stages" / stage.name / "end").is_dir() for stage in stages]
        count = has_snapshot.index(False) if False in has_snapshot else shared_count
        if count > best_count:
            best_count, donor = count, arms_folder / name
    for stage_index, stage in enumerate(plan.stages[:best_count], start=1):
        target, source = arm_folder / "stages" / stage.name, donor / "stages" / stage.name
        shutil.rmtree(target, ignore_errors=True)  # a copy that was interrupted
        shutil.copytree(source / "end", target / "end", copy_function=_link_or_copy)
        for file_name in ("trained.json", "steps.jsonl", "evaluations.jsonl"):
            if (source / file_name).is_file():  # only a stage with `evaluate_steps` has evaluations
                shutil.copy2(source / file_name, target / file_name)
        for folder_name in ("evaluations", "written"):
            if (source / folder_name).is_dir():
                shutil.copytree(source / folder_name, target / folder_name, copy_function=_link_or_copy)
        (arm_folder / "predictions").mkdir(parents=True, exist_ok=True)
        for file in stored_files(donor / "predictions", stage_index):
            shutil.copy2(file, arm_folder / "predictions" / file.name)
    return best_count


def delete_snapshots(arms_folder: Path) -> None:
    """Delete the stage snapshots of finished arms; an unfinished arm needs its own to be resumed."""
    for arm_folder in arms_folder.iterdir():
        if resume.is_finished(arm_folder):
            for snapshot in arm_folder.glob("stages/*/end"):
                shutil.rmtree(snapshot, ignore_errors=True)


def _offers_variants(plan: Plan, stage: Stage, registry: Registry) -> bool:
    mitigations = plan_module.create_mitigations(plan_module.stage_mitigations(plan, stage), registry)
    return any(type(mitigation).variants is not Mitigation.variants for _, mitigation in mitigations)


def _link_or_copy(source: str, target: str) -> str:
    with contextlib.suppress(OSError):
        os.link(source, target)
        return target
    return shutil.copy2(source, target)
