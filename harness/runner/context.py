"""`RunContext`: what every part of a run needs, handed on as one value."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

from harness.data.tokenization.tokenized_rows import TokenizedRows
from harness.distributed.processes import SINGLE_PROCESS, Processes
from harness.model import device, load, locate
from harness.model.precision import autocast_context
from harness.registry import Registry
from harness.runner import continue_run
from harness.runner.folder import RunFolder
from harness.runner.prepare import PreparedRun, create_progress
from harness.spec.spec import Spec
from harness.types import Plan, Progress, StageDataset


@dataclass(frozen=True)
class RunContext:
    """One run, in one process.

    Attributes:
        spec: The spec of the run, without arms.
        registry: The components and listeners.
        prepared: Plan, tokenizer and data.
        folder: The folder of the run.
        processes: The processes that share the run.
        resuming: Whether an interrupted run is resumed.
        arm: `name` and `changes` of the experiment's arm; None outside an experiment.
        parent: MLflow id of the experiment's run; None outside an experiment.
        tracked: Whether MLflow is used, if the spec enables it. False for the arms of an experiment that MLflow
            does not have: each would wait for the store again.
        stages_to_keep: Number of first stages whose snapshots stay, for other arms.
        written_stages: Index of a stage -> its rows after a model has written some of them.
        written_rows: Index of a stage -> mitigation -> source -> the rows that the model wrote for the mitigation.
    """

    spec: Spec
    registry: Registry
    prepared: PreparedRun
    folder: RunFolder
    processes: Processes = SINGLE_PROCESS
    resuming: bool = False
    arm: Mapping[str, Any] | None = None
    parent: str | None = None
    tracked: bool = True
    stages_to_keep: int = 0
    written_stages: dict[int, StageDataset] = field(default_factory=dict)
    written_rows: dict[int, dict[str, dict[str, TokenizedRows]]] = field(default_factory=dict)

    @property
    def plan(self) -> Plan:
        """The plan of the run."""
        return self.prepared.plan

    @property
    def progress(self) -> Progress:
        """Emits progress as events."""
        return create_progress(self.registry)

    @property
    def adapter_policy(self) -> str | None:
        """What happens to the adapter of an earlier run; see `continue_run.adapter_policy`."""
        return continue_run.adapter_policy(self.spec, self.prepared)

    def stage_data(self, stage_index: int) -> StageDataset:
        """Return the rows of a stage, with those of the data until a model has written others. stage_index: from 1."""
        return self.written_stages.get(stage_index) or self.prepared.data.stages[stage_index - 1]

    def planned_steps(self, stage_index: int) -> int:
        """Return the planned optimizer steps of a stage. stage_index: from 1."""
        return self.stage_data(stage_index).count_steps(self.processes.world_size)

    def load_model(self, location: locate.ModelLocation | None = None) -> Any:
        """Load the model that the run starts from, or the one at `location`, in the run's precision."""
        device.set_tf32(self.plan.train.get("tf32", False))
        return load.load_model(
            location or self.prepared.location,
            self.plan.model,
            precision=self.plan.train["precision"],
            progress=self.progress,
        )

    def autocast(self, model: Any) -> AbstractContextManager[Any]:
        """Return the context in which the run computes with the model."""
        return autocast_context(model, self.plan.train["precision"])
