"""The training of the stages, as every process of a run executes it.

`StageLoop` holds the order within a stage and the points where the processes meet. `MainProcess` (run_stages.py)
also evaluates, saves and emits events; `WorkerProcess` is the loop of ranks > 0.
"""

from __future__ import annotations

import shutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from harness.distributed.processes import Processes
from harness.errors import RunError
from harness.interfaces.component import CORE_DISTRIBUTION
from harness.plugin_versions import describe_plugins, installed_version
from harness.registry import Registry
from harness.runner import rows_to_write, written_rows
from harness.runner.context import RunContext
from harness.runner.early_stopping import EarlyStopper, due_steps
from harness.runner.evaluate_stages import StageEvaluator
from harness.runner.folder import RunFolder, load_stage_snapshot, save_stage_snapshot
from harness.runner.prepare import PreparedRun, prepare_run
from harness.runner.staged_model import StagedModel
from harness.seeding import derive_seed, seed_mitigations
from harness.spec.spec import Spec
from harness.training import train_stage
from harness.training.checkpoint import checkpoint_step
from harness.training.stage_schedule import checkpoint_steps, evaluates_within


class StageLoop(ABC):
    """The stages of a run in one process."""

    def __init__(self, context: RunContext) -> None:
        """Create the loop of a run."""
        self.context = context
        self._rows_to_write = rows_to_write.list_rows_to_write(context.plan, context.registry)

    def create_staged_model(self) -> StagedModel:
        """Load the model and add the mitigations of its first stage."""
        with self.context.processes.main_first():  # so that a model is downloaded or converted once
            model = self.context.load_model()
        with self._clock_generation():
            todo = [task for task in self._rows_to_write if task.model == "base"]
            written_rows.write_rows(self.context, model, todo)
        seed = seed_mitigations(self.context.plan.seed)
        return StagedModel(model, self.context.plan, self.context.registry, self.context.adapter_policy, seed=seed)

    def write_rows(self, staged_model: StagedModel, stage_index: int, totals: Mapping[str, Any] | None) -> None:
        """Let the model write rows of the stage that begins, where a mitigation wants that.

        Args:
            staged_model: The model after the stage before.
            stage_index: The stage, from 1.
            totals: The totals of a stage that is trained already; None to train it. Only the main process knows them.
        """
        is_trained = self.context.processes.broadcast(totals is not None)
        model = None if is_trained else staged_model.model
        with self._clock_generation():
            todo = [task for task in self._rows_to_write if (task.model, task.stage_index) == ("current", stage_index)]
            written_rows.write_rows(self.context, model, todo)

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
            mitigations = staged_model.start_stage(
                stage_index,
                context.prepared.data.tokenized_rows,
                seed=seed,
                planned_steps=context.planned_steps(stage_index),
                written_rows=context.written_rows.get(stage_index, {}),
                planned_saves=checkpoint_steps(data, processes.world_size),
                planned_rows=data.rows,
            )
        if totals is not None:
            return self._restore_stage(stage_folder, staged_model, totals)
        self._synchronize_start(stage_folder, staged_model)
        checkpoint = processes.broadcast(self._checkpoint_to_resume(stage_folder))
        early_stopper = self._create_early_stopper(staged_model, stage_index, checkpoint)
        evaluated_steps = due_steps(data, processes.world_size) if evaluates_within(data.stage.train) else frozenset()
        resumed_step = checkpoint_step(checkpoint)

        def should_stop(step: int) -> bool:
            if step != resumed_step and step not in evaluated_steps:
                return False  # nothing was evaluated, so the processes need not meet
            scores = processes.broadcast(None if early_stopper is None else early_stopper.evaluate(step))
            if scores is not None:
                mitigation_stats = staged_model.react_to_evaluation(stage_index, scores)
                if early_stopper is not None:
                    early_stopper.log_evaluation(mitigation_stats)
            return processes.broadcast(early_stopper is not None and early_stopper.should_stop)

        def reads_weights(step: int) -> bool:
            return processes.broadcast(early_stopper is not None and early_stopper.is_due(step))

        result = train_stage.train_stage(
            staged_model.model,
            context.prepared.tokenizer,
            data,
            mitigations,
            seed=context.plan.seed,
            folder=stage_folder,
            registry=context.registry,
            progress=context.progress,
            on_step=self._create_step_callback(stage_index, checkpoint),
            resume=checkpoint,
            stop_check=should_stop if evaluates_within(data.stage.train) else None,
            resume_is_intact=True,
            check_steps=evaluated_steps,
            check_reads_weights=reads_weights,
        )
        self._finish_stage(staged_model, stage_index, result, early_stopper)
        return result

    # -- what differs between the main process and the workers ---------------------------------------------------------

    def _clock_phase(self, name: str) -> AbstractContextManager[None]:
        """Return the context whose time counts as a phase of the run."""
        return nullcontext()

    def _clock_generation(self) -> AbstractContextManager[None]:
        """Return the context of the phase "generate"; a run whose models write no rows does not have it."""
        return self._clock_phase("generate") if self._rows_to_write else nullcontext()

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

    def _checkpoint_to_resume(self, stage_folder: Path) -> Path | None:
        """Return the checkpoint from which the stage continues; only the main process looks for it."""
        return None

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
            save_stage_snapshot(snapshot, staged_model.model, staged_model.mitigation_states(), durable=False)
        processes.barrier()
        if not processes.is_main:
            staged_model.load_mitigation_states(load_stage_snapshot(snapshot, staged_model.model, durable=False))
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
        inputs: See `input_digests`, of the main process.
    """

    spec: Spec
    path: Path
    resuming: bool
    inputs: Mapping[str, str]


def input_digests(prepared: PreparedRun, registry: Registry) -> dict[str, str]:
    """Return the digests of what every process reads by itself: the code, the model and the rows."""
    versions = {name: str(installed_version(name)) for name in (CORE_DISTRIBUTION, "torch", "transformers")}
    plugins = {f"plugin {name}": str(about["digest"]) for name, about in describe_plugins(registry).items()}
    rows = {f"sources.{name}": str(digest) for name, digest in prepared.data.digests.items()}
    return {**versions, **plugins, "model.path": prepared.location.digest, **rows}


def _require_equal_inputs(main_inputs: Mapping[str, str], inputs: Mapping[str, str]) -> None:
    """Require that this process reads what the main process reads; a node may have files of its own.

    Raises:
        RunError: An input differs.
    """
    for name in {**main_inputs, **inputs}:
        ours, theirs = inputs.get(name, ""), main_inputs.get(name, "")
        shorter, longer = sorted((ours, theirs), key=len)
        is_same_model = name == "model.path" and longer.startswith(f"{shorter}@")  # one does not know the commit
        if ours != theirs and not is_same_model:
            what = f"differs from that of the main process: {ours or 'missing'}, not {theirs or 'missing'}"
            raise RunError(name, what, "give all nodes the same packages and files, e.g. on a shared disk")


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
        with processes.node_first():  # which downloads and tokenizes where the cache of the main process is not seen
            prepared = prepare_run(task.spec, registry, processes=processes)
        _require_equal_inputs(task.inputs, input_digests(prepared, registry))
        context = RunContext(
            task.spec, registry, prepared, RunFolder(task.path), processes=processes, resuming=task.resuming
        )
        WorkerProcess(context).run()


class WorkerProcess(StageLoop):
    """The stages of a run in a process of rank > 0."""

    def run(self) -> None:
        """Train all stages together with the main process, and measure a share of what it evaluates."""
        processes = self.context.processes
        staged_model, evaluator = self.create_staged_model(), StageEvaluator(self.context)
        processes.perform = partial(evaluator.measure_for_main_process, staged_model)
        for stage_index in range(1, len(self.context.plan.stages) + 1):
            self.write_rows(staged_model, stage_index, None)
            self.train_or_load_stage(staged_model, stage_index, None)
        processes.broadcast(None)  # when the main process has evaluated the last stage
        processes.perform = None

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
