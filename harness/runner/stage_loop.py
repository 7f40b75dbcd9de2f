"""The model on its way through the stages, as every process that shares the run takes it.

Knows the order within a stage, and what the processes do there at the same time. What is measured, kept and told of it
`main_process` knows; `WorkerProcess` is for those beside it.
"""

from __future__ import annotations

import shutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.distributed.processes import Processes
from harness.errors import RunError
from harness.model import load as load_module
from harness.model import locate
from harness.registry import Registry
from harness.runner import continue_run, early_stopping
from harness.runner.folder import RunFolder, load_stage_snapshot, save_stage_snapshot
from harness.runner.prepare import PreparedRun, create_progress, prepare_run
from harness.runner.staged_model import StagedModel
from harness.seeding import derive_seed
from harness.spec.spec import Spec
from harness.training import checkpoint, train_stage


class StageLoop(ABC):
    """One process's way through the stages of a run. again: whether the run is gone on with."""

    def __init__(
        self,
        spec: Spec,
        registry: Registry,
        prepared: PreparedRun,
        folder: RunFolder,
        processes: Processes,
        resuming: bool,
    ) -> None:
        self.spec, self.registry, self.prepared = spec, registry, prepared
        self.folder, self.processes, self.resuming = folder, processes, resuming

    @property
    def adapter_policy(self) -> str | None:
        """What becomes of an earlier run's adapter, see `continue_run.adapter_policy`."""
        return continue_run.adapter_policy(self.spec, self.prepared)

    def load_model(self, location: locate.ModelLocation | None = None) -> Any:
        """A model as the run computes with it: the one it begins with, or another copy, of `location`."""
        planned = self.prepared.plan
        return load_module.load_model(
            location or self.prepared.location,
            planned.model,
            precision=planned.train["precision"],
            progress=create_progress(self.registry),
        )

    def _create_staged_model(self) -> StagedModel:
        """The model with its mitigations, before its first stage."""
        planned = self.prepared.plan
        with self.processes.main_first():  # what is downloaded or converted is so once
            net = self.load_model()
        seed = train_stage.seed_mitigations(planned.seed)
        return StagedModel(net, planned, self.registry, self.adapter_policy, seed=seed)

    def _train_stage(
        self, staged_model: StagedModel, stage_index: int, totals: Mapping[str, Any] | None
    ) -> train_stage.StageResult:
        """Take the model through a stage. stage_index: from 1. totals: what it came to, where it was trained before."""
        data = self.prepared.data.stages[stage_index - 1]
        place = self.folder.stage_folder(data.stage.name)
        totals = self.processes.broadcast(totals)
        seed = train_stage.seed_mitigations(self._mitigation_seed(stage_index))
        with self.processes.main_first(), self._autocast(staged_model):  # the others find the Fisher in the cache
            active = staged_model.start_stage(stage_index, self.prepared.data.tokenized_rows, seed=seed)
        if totals is not None:
            return self._restore_stage(place, staged_model, totals)
        self._synchronize_start(place, staged_model)
        resumed = self.processes.broadcast(
            checkpoint.latest_checkpoint(place / "checkpoints") if self.resuming else None
        )
        watch = self._create_early_stopper(staged_model, stage_index, resumed)
        steps, begun = data.count_steps(self.processes.world_size), checkpoint.checkpoint_step(resumed)

        def over(step: int) -> bool:
            if step != begun and not early_stopping.is_due(data.stage, steps, step):
                return False  # nothing was looked at, so there is nothing to ask the main process
            return self.processes.broadcast(watch is not None and watch(step))

        trained = train_stage.train_stage(
            staged_model.model,
            self.prepared.tokenizer,
            data,
            active,
            seed=self.prepared.plan.seed,
            folder=place,
            progress=create_progress(self.registry),
            on_step=self._create_step_callback(stage_index, data.stage.name, resumed),
            resume=resumed,
            stop_check=over if data.stage.train["evaluate_steps"] is not None else None,
        )
        self._finish_stage(staged_model, stage_index, trained, watch)
        return trained

    # -- what the main process and the others do in their own ways -----------------------------------------------------

    @abstractmethod
    def _create_early_stopper(
        self, staged_model: StagedModel, stage_index: int, checkpoint: Path | None
    ) -> early_stopping.EarlyStopper | None:
        """What evaluates the stage on its way; None where that is not asked for, or not done here."""

    @abstractmethod
    def _create_step_callback(
        self, stage_index: int, name: str, checkpoint: Path | None
    ) -> Callable[[int, Mapping[str, float]], None]:
        """What hears of each logged update."""

    @abstractmethod
    def _finish_stage(
        self,
        staged_model: StagedModel,
        stage_index: int,
        stage_result: train_stage.StageResult,
        early_stopper: early_stopping.EarlyStopper | None,
    ) -> None:
        """Bring model and mitigations to the stage's end."""

    # -- within a stage -----------------------------------------------------------------------------------------------

    def _synchronize_start(self, stage_folder: Path, staged_model: StagedModel) -> None:
        """Give every process the weights and states that the main one begins the stage with.

        They were computed alike, but devices of one kind may still round otherwise, and what the mitigations add to
        the gradients is not averaged as these are.
        """
        if self.processes.world_size == 1:
            return
        begun = stage_folder / "begun"
        if self.processes.is_main:
            save_stage_snapshot(begun, staged_model.model, mitigation_states(staged_model))
        self.processes.barrier()
        if not self.processes.is_main:
            for name, state in load_stage_snapshot(begun, staged_model.model).items():
                staged_model.active_mitigations[name].load_state_dict(state)
        self.processes.barrier()
        if self.processes.is_main:
            shutil.rmtree(begun)

    def _restore_stage(
        self, stage_folder: Path, staged_model: StagedModel, totals: Mapping[str, Any]
    ) -> train_stage.StageResult:
        """What a stage that was trained before came to, the model and its mitigations with it."""
        states = load_stage_snapshot(stage_folder / "end", staged_model.model)
        try:
            trained = train_stage.StageResult.from_totals(totals)
            if states.keys() != staged_model.active_mitigations.keys():
                raise ValueError("other mitigations are at work")
        except ValueError as error:
            what = "it was written with other mitigations, or by another version"
            raise RunError(
                str(stage_folder / "end"), what, "take this folder away, and the stage is trained again"
            ) from error
        for name, state in states.items():
            staged_model.active_mitigations[name].load_state_dict(state)
        return trained

    def _mitigation_seed(self, stage_index: int) -> int:
        """Of what the mitigations of a stage draw: a second adapter does not start where the first one did."""
        seed = self.prepared.plan.seed
        return (
            seed
            if stage_index == 1 and self.adapter_policy is None
            else derive_seed(seed, "stage", self.prepared.plan.stages[stage_index - 1].name)
        )

    def _autocast(self, staged_model: StagedModel) -> AbstractContextManager[Any]:
        return load_module.autocast_context(staged_model.model, self.prepared.plan.train["precision"])


def mitigation_states(staged_model: StagedModel) -> dict[str, Mapping[str, Any]]:
    """The states of the mitigations that are at work."""
    return {name: one.state_dict() for name, one in staged_model.active_mitigations.items()}


@dataclass(frozen=True)
class RunTask:
    """A run that the main process begins, in its folder. resuming: whether it is gone on with."""

    spec: Spec
    path: Path
    resuming: bool


def run_worker(registry: Registry, processes: Processes) -> None:
    """Train beside the main process in every run that it begins, until nothing more comes.

    The listeners hear nothing of it. The main process has proven the data before and put the tokens into the cache.
    """
    registry.muted = True
    task: RunTask | None
    while (task := processes.broadcast(None)) is not None:
        ready = prepare_run(task.spec, registry, processes=processes)
        WorkerProcess(task.spec, registry, ready, RunFolder(task.path), processes, task.resuming).run()


class WorkerProcess(StageLoop):
    """A run under way beside the main process."""

    def run(self) -> None:
        """Walk all the way."""
        chain = self._create_staged_model()
        for number in range(1, len(self.prepared.plan.stages) + 1):
            self._train_stage(chain, number, None)

    def _create_early_stopper(
        self, staged_model: StagedModel, stage_index: int, checkpoint: Path | None
    ) -> early_stopping.EarlyStopper | None:
        return None

    def _create_step_callback(
        self, stage_index: int, name: str, checkpoint: Path | None
    ) -> Callable[[int, Mapping[str, float]], None]:
        return train_stage.no_step_callback

    def _finish_stage(
        self,
        staged_model: StagedModel,
        stage_index: int,
        stage_result: train_stage.StageResult,
        early_stopper: early_stopping.EarlyStopper | None,
    ) -> None:
        """As a run that is gone on with does: what the main process kept of the stage is read."""
        totals = self.processes.broadcast(None)
        assert totals is not None, "the main process shares what the stage came to"
        self._restore_stage(
            self.folder.stage_folder(self.prepared.plan.stages[stage_index - 1].name), staged_model, totals
        )
        self.processes.barrier()
