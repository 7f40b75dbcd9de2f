"""The training of the stages, as every process of a run executes it.

`StageLoop` holds the order within a stage and the points where the processes meet. `MainProcess` (run_stages.py)
also evaluates, saves and emits events; `WorkerProcess` is the loop of ranks > 0.
"""

from __future__ import annotations

import shutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.distributed.processes import Processes
from harness.errors import RunError
from harness.registry import Registry
from harness.runner import resume
from harness.runner.context import RunContext
from harness.runner.early_stopping import EarlyStopper, is_due
from harness.runner.folder import RunFolder, load_stage_snapshot, save_stage_snapshot
from harness.runner.prepare import prepare_run
from harness.runner.staged_model import StagedModel
from harness.seeding import derive_seed, seed_mitigations
from harness.spec.spec import Spec
from harness.training import train_stage
from harness.training.checkpoint import checkpoint_step


class StageLoop(ABC):
    """The stages of a run in one process."""

    def __init__(self, context: RunContext) -> None:
        """Create the loop of a run."""
        self.context = context

    def create_staged_model(self) -> StagedModel:
        """Load the model and add the mitigations of its first stage."""
        with self.context.processes.main_first():  # so that a model is downloaded or converted once
            model = self.context.load_model()
        seed = seed_mitigations(self.context.plan.seed)
        return StagedModel(model, self.context.plan, self.context.registry, self.context.adapter_policy, seed=seed)

    def train_or_load_stage(
        self, staged_model: StagedModel, stage_index: int, totals: Mapping[str, Any] | None
    ) -> train_stage.StageResult:
        """Train a stage, or load its snapshot if it is trained already.

        Args:
            staged_model: The model after the stage before.
            stage_index: The stage, from 1.
            totals: The totals of a stage that is trained already; None to train it. Only the main process knows them.
        """
        context, processes = self.context, self.context.processes
        data = context.stage_data(stage_index)
        stage_folder = context.folder.stage_folder(data.stage.name)
        totals = processes.broadcast(totals)
        seed = seed_mitigations(self._mitigation_seed(stage_index))
        # The other processes read from the cache what the main process computes here, e.g. the Fisher information.
        with processes.main_first(), context.autocast(staged_model.model):
            mitigations = staged_model.start_stage(stage_index, context.prepared.data.tokenized_rows, seed=seed)
        if totals is not None:
            return self._restore_stage(stage_folder, staged_model, totals)
        self._synchronize_start(stage_folder, staged_model)
        checkpoint = processes.broadcast(resume.checkpoint_to_resume(stage_folder, resuming=context.resuming))
        early_stopper = self._create_early_stopper(staged_model, stage_index, checkpoint)
        planned_steps, resumed_step = context.planned_steps(stage_index), checkpoint_step(checkpoint)

        def should_stop(step: int) -> bool:
            if step != resumed_step and not is_due(data.stage, planned_steps, step):
                return False  # nothing was evaluated, so the processes need not meet
            return processes.broadcast(early_stopper is not None and early_stopper(step))

        result = train_stage.train_stage(
            staged_model.model,
            context.prepared.tokenizer,
            data,
            mitigations,
            seed=context.plan.seed,
            folder=stage_folder,
            progress=context.progress,
            on_step=self._create_step_callback(stage_index, checkpoint),
            resume=checkpoint,
            stop_check=should_stop if data.stage.train["evaluate_steps"] is not None else None,
        )
        self._finish_stage(staged_model, stage_index, result, early_stopper)
        return result

    # -- what differs between the main process and the workers ---------------------------------------------------------

    @abstractmethod
    def _create_early_stopper(
        self, staged_model: StagedModel, stage_index: int, checkpoint: Path | None
    ) -> EarlyStopper | None:
        """Return what evaluates the stage while it trains; None if nothing does in this process."""

    @abstractmethod
    def _create_step_callback(
        self, stage_index: int, checkpoint: Path | None
    ) -> Callable[[int, Mapping[str, float]], None]:
        """Return what receives each logged step."""

    @abstractmethod
    def _finish_stage(
        self,
        staged_model: StagedModel,
        stage_index: int,
        stage_result: train_stage.StageResult,
        early_stopper: EarlyStopper | None,
    ) -> None:
        """Bring model and mitigations to their state at the end of the stage."""

    # -- within a stage -----------------------------------------------------------------------------------------------

    def _synchronize_start(self, stage_folder: Path, staged_model: StagedModel) -> None:
        """Give every process the weights and mitigation states with which the main process starts the stage.

        All processes computed them, but devices of one kind may still round differently, and the gradients that
        mitigations add are not averaged over the processes.
        """
        processes = self.context.processes
        if processes.world_size == 1:
            return
        snapshot = stage_folder / "begun"
        if processes.is_main:
            save_stage_snapshot(snapshot, staged_model.model, staged_model.mitigation_states())
        processes.barrier()
        if not processes.is_main:
            staged_model.load_mitigation_states(load_stage_snapshot(snapshot, staged_model.model))
        processes.barrier()
        if processes.is_main:
            shutil.rmtree(snapshot)

    def _restore_stage(
        self, stage_folder: Path, staged_model: StagedModel, totals: Mapping[str, Any]
    ) -> train_stage.StageResult:
        """Load the snapshot of a trained stage into model and mitigations, and return its result."""
        snapshot = stage_folder / "end"
        states = load_stage_snapshot(snapshot, staged_model.model)
        try:
            result = train_stage.StageResult.from_totals(totals)
            if states.keys() != staged_model.active_mitigations.keys():
                raise ValueError("the snapshot has other mitigations")
        except ValueError as error:
            what = "the snapshot was saved with other mitigations or by another version of harness"
            raise RunError(str(snapshot), what, "delete this folder to train the stage again") from error
        staged_model.load_mitigation_states(states)
        return result

    def _mitigation_seed(self, stage_index: int) -> int:
        """Return the seed of a stage's mitigations. It differs by stage, so that a second adapter differs too."""
        seed = self.context.plan.seed
        if stage_index == 1 and self.context.adapter_policy is None:
            return seed
        return derive_seed(seed, "stage", self.context.plan.stages[stage_index - 1].name)


@dataclass(frozen=True)
class RunTask:
    """A run that the main process starts, as the workers receive it.

    Attributes:
        spec: The spec of the run.
        path: The folder of the run.
        resuming: Whether an interrupted run is resumed.
    """

    spec: Spec
    path: Path
    resuming: bool


def run_worker(registry: Registry, processes: Processes) -> None:
    """Take part in the training of every run that the main process starts, until it has no more.

    The listeners of this process receive no events. The main process has checked the data and cached the tokens.

    Args:
        registry: The components.
        processes: This process among those of the run, with a rank > 0.
    """
    registry.muted = True
    task: RunTask | None
    while (task := processes.broadcast(None)) is not None:
        prepared = prepare_run(task.spec, registry, processes=processes)
        context = RunContext(
            task.spec, registry, prepared, RunFolder(task.path), processes=processes, resuming=task.resuming
        )
        WorkerProcess(context).run()


class WorkerProcess(StageLoop):
    """The stages of a run in a process of rank > 0."""

    def run(self) -> None:
        """Train all stages together with the main process."""
        staged_model = self.create_staged_model()
        for stage_index in range(1, len(self.context.plan.stages) + 1):
            self.train_or_load_stage(staged_model, stage_index, None)

    def _create_early_stopper(
        self, staged_model: StagedModel, stage_index: int, checkpoint: Path | None
    ) -> EarlyStopper | None:
        return None

    def _create_step_callback(
        self, stage_index: int, checkpoint: Path | None
    ) -> Callable[[int, Mapping[str, float]], None]:
        return train_stage.no_step_callback

    def _finish_stage(
        self,
        staged_model: StagedModel,
        stage_index: int,
        stage_result: train_stage.StageResult,
        early_stopper: EarlyStopper | None,
    ) -> None:
        """Load the snapshot that the main process saved, as a resumed run does."""
        totals = self.context.processes.broadcast(None)
        assert totals is not None, "the main process broadcasts the totals of the stage"
        stage = self.context.plan.stages[stage_index - 1]
        self._restore_stage(self.context.folder.stage_folder(stage.name), staged_model, totals)
        self.context.processes.barrier()
