"""One arm of an experiment: run it, resume it, or complete its result."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.distributed.processes import SINGLE_PROCESS, Processes
from harness.errors import HarnessError, RunError
from harness.evaluation.predictions import stored_files
from harness.events import ArmFinished, WarningRaised
from harness.registry import Registry
from harness.runner import resume
from harness.runner.arm_task import ArmOutcome
from harness.runner.bounded_plan import build_bounded_plan
from harness.runner.context import RunContext
from harness.runner.finish_interrupted_run import finish_interrupted_run
from harness.runner.folder import RunFolder
from harness.runner.prepare import PreparedRun, prepare_checked_run
from harness.runner.run_stages import run_stages
from harness.runner.shared_stages import SharedStages, reuse_stages
from harness.spec.arms import Arm
from harness.spec.spec import Spec
from harness.types import Plan


@dataclass
class ArmRun:
    """An arm that is to run.

    Attributes:
        arm: Its name and changes.
        spec: The spec with its changes.
        plan: The plan of that spec.
        prepared: Its prepared data; None to prepare it when it runs.
        is_checked: Whether its data was prepared in this process, and its warnings emitted.
        invalid_rows_folder: Where invalid rows are written when it is prepared; None: the folder of all arms.
    """

    arm: Arm
    spec: Spec
    plan: Plan
    prepared: PreparedRun | None = None
    is_checked: bool = False
    invalid_rows_folder: Path | None = None

    def take_prepared(self, registry: Registry, processes: Processes) -> PreparedRun:
        """Return the prepared data, and release it here so that it is freed when the arm has run."""
        prepared, self.prepared = self.prepared, None
        return prepared or prepare_checked_run(
            self.spec,
            registry,
            plan=self.plan,
            processes=processes,
            invalid_rows_folder=self.invalid_rows_folder,
        )


@dataclass(frozen=True)
class ArmContext:
    """What all arms of an experiment need to run.

    Attributes:
        registry: The components and listeners.
        folder: The folder that holds the folders of the arms.
        parent: MLflow id of the experiment's run; None without one.
        tracked: Whether MLflow has the experiment.
        processes: The processes that share each run.
    """

    registry: Registry
    folder: Path
    parent: str | None
    tracked: bool
    processes: Processes = SINGLE_PROCESS


def plan_arms(arm_specs: Sequence[tuple[Arm, Spec]], registry: Registry) -> list[ArmRun]:
    """Plan every arm, without preparing its data."""
    return [ArmRun(arm, arm_spec, build_bounded_plan(arm_spec, registry)) for arm, arm_spec in arm_specs]


def run_arm(context: ArmContext, arm_run: ArmRun, shared: SharedStages) -> ArmOutcome:
    """Run an arm, resume it, or complete its result.

    Args:
        context: What all arms need.
        arm_run: The arm.
        shared: The first stages that it has in common with other arms. `earlier` must not name an arm that runs.

    Raises:
        HarnessError: With several processes, if the arm failed: the other processes cannot know where.
    """
    arm, arm_folder = arm_run.arm, context.folder / arm_run.arm.name
    if resume.is_finished(arm_folder):
        return _finish_interrupted_arm(context, arm_run, arm_folder)
    folder = RunFolder(arm_folder)
    try:
        with folder.locked():  # a process of an earlier attempt may still write
            resuming = resume.is_started(arm_folder)
            if not resuming:
                _copy_base_predictions(context.folder, arm_folder)
                reuse_stages(context.folder, arm_folder, arm_run.plan, shared.earlier)
            prepared = arm_run.take_prepared(context.registry, context.processes)
            run_stages(
                RunContext(
                    arm_run.spec,
                    context.registry,
                    prepared,
                    folder,
                    processes=context.processes,
                    resuming=resuming,
                    arm=arm_metadata(arm),
                    parent=context.parent,
                    tracked=context.tracked,
                    stages_to_keep=shared.to_keep,
                )
            )
    except HarnessError as error:  # spec and data were checked, so the failure concerns this arm alone
        if context.processes.world_size > 1:
            raise
        return ArmOutcome.of_error(error)
    return ArmOutcome()


def emit_arm_end(registry: Registry, name: str, outcome: ArmOutcome) -> None:
    """Emit how an arm ended: the warnings of its process, its error, and whether it has a result."""
    for text, rows in outcome.warnings:
        registry.emit(WarningRaised(text=f"arm {name!r}: {text}", rows=rows))
    if outcome.error:
        registry.emit(WarningRaised(text=f"the arm {name!r} failed: {outcome.error}"))
    if outcome.failure is None or outcome.reused:
        registry.emit(ArmFinished(arm=name, reused=outcome.reused))


def arm_metadata(arm: Arm) -> dict[str, Any]:
    """Return what events and the tracker know about an arm."""
    return {"name": arm.name, "method": arm.method, "changes": dict(arm.changes)}


def _finish_interrupted_arm(context: ArmContext, arm_run: ArmRun, arm_folder: Path) -> ArmOutcome:
    """Complete an arm that was killed after its report."""
    folder = RunFolder(arm_folder)
    try:
        with folder.locked():
            finish_interrupted_run(
                arm_run.spec,
                context.registry,
                folder,
                plan=arm_run.plan,
                arm=arm_metadata(arm_run.arm),
                parent=context.parent,
                tracked=context.tracked,
            )
    except RunError as error:
        return ArmOutcome(error.what, reused=True)
    except HarnessError as error:  # the result exists, and is compared
        text = f"cannot complete the arm {arm_run.arm.name!r}: {error}"
        context.registry.emit(WarningRaised(text=text))
    return ArmOutcome(reused=True)


def _copy_base_predictions(arms_folder: Path, arm_folder: Path) -> None:
    """Copy the base model's answers of a finished arm; their keys decide whether they are reused."""
    for predictions in sorted(arms_folder.glob("*/predictions")):
        files = stored_files(predictions, 0)
        if files and resume.is_finished(predictions.parent):
            (arm_folder / "predictions").mkdir(parents=True, exist_ok=True)
            for file in files:
                shutil.copy2(file, arm_folder / "predictions" / file.name)
            return
