"""The model from the first stage to the last: its adapter, and the active mitigations of each stage.

Uses the plan's stages and the methods of a mitigation. Does not load data or compute scores.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from types import MappingProxyType
from typing import Any

from harness.errors import HarnessError, RunError
from harness.interfaces.mitigation import Mitigation
from harness.model import device, quantization, save
from harness.model.precision import loaded_dtype, upcast_trainable
from harness.registry import Registry
from harness.runner.continue_run import EarlierAdapter
from harness.spec import plan
from harness.training.packing_isolation import unpadded_batches
from harness.training.router_loss import create_router_loss
from harness.training.step_log import row_lengths
from harness.types import Plan, Stage, SuiteScores, TokenizedExample

RowsBySource = Mapping[str, Sequence[TokenizedExample]]


class StagedModel:
    """The model and its mitigations from the first stage to the last.

    A mitigation keeps one state over all stages that have it, even if their options differ. It is not called in stages
    that leave it out.

    Attributes:
        model: The model with its current weights and adapter.
        plan: The plan of the run.
        registry: Creates the mitigations.
        merged: Whether the weights below the adapter were changed: an earlier adapter was merged into them, or they
            were trained before the first stage with an adapter.
    """

    def __init__(
        self, model: Any, plan: Plan, registry: Registry, adapter_policy: str | None = None, *, seed: int
    ) -> None:
        """Prepare the model for its first stage.

        Args:
            model: The model as loaded.
            plan: The plan of the run.
            registry: Creates the mitigations.
            adapter_policy: What happens to the adapter of an earlier run; see `continue_run.adapter_policy`. If it is
                set, the model stays as loaded until `start_stage(1)`, so that it can be evaluated.
            seed: See `Mitigation.prepare_model`.

        Raises:
            HarnessError: As the mitigations do, or if a stage needs an adapter that no mitigation adds.
        """
        self.model = model
        self.plan, self.registry = plan, registry
        self._states: dict[str, Mapping[str, Any]] = {}
        self._active: dict[str, Mitigation] = {}
        self._options: Mapping[str, Any] | None = None
        self.merged = False
        self._adapter_policy = adapter_policy
        quantization.reject_merge(
            model,
            (adapter_policy, *(stage.adapter for stage in plan.stages[1:])),
            keeps_quantization=bool(plan.model.get("quantization")),
        )
        if adapter_policy is None:
            self._create_mitigations(plan.stages[0])
            self._prepare_model(seed)
            for stage in plan.stages[1:2]:  # before training, not after the first stage
                self._require_adapter(stage)

    @property
    def active_mitigations(self) -> Mapping[str, Mitigation]:
        """The mitigations of the current stage, by name, in their order."""
        return self._active

    def mitigation_states(self) -> dict[str, Mapping[str, Any]]:
        """Return the states of the active mitigations, by name."""
        return {name: mitigation.state_dict() for name, mitigation in self._active.items()}

    def load_mitigation_states(self, states: Mapping[str, Mapping[str, Any]]) -> None:
        """Load states into the active mitigations. states: by name."""
        for name, state in states.items():
            self._active[name].load_state_dict(state)

    def start_stage(
        self,
        stage_index: int,
        rows: RowsBySource,
        *,
        seed: int,
        planned_steps: int,
        written_rows: Mapping[str, RowsBySource] = MappingProxyType({}),
        planned_saves: tuple[int, ...] = (),
        planned_rows: Sequence[TokenizedExample] = (),
    ) -> Mapping[str, Mitigation]:
        """Prepare the model for a stage, and let its mitigations record the start.

        `harness.spec.plan` has verified that weights which are trained further keep their shape.

        Args:
            stage_index: The stage, from 1.
            rows: Rows of the sources that mitigations name.
            seed: See `Mitigation.on_stage_start`.
            planned_steps: The planned optimizer steps.
            written_rows: Mitigation -> the rows that a model wrote for it, instead of those of the data.
            planned_saves: The steps after which a checkpoint is written.
            planned_rows: The rows that the stage trains on.

        Returns:
            The active mitigations, by name.

        Raises:
            HarnessError: If the stage needs another adapter than the model has.
        """
        stage = replace(
            self.plan.stages[stage_index - 1],
            planned_steps=planned_steps,
            planned_saves=tuple(planned_saves),
            planned_rows=planned_rows,
        )
        earlier_adapter = None
        if stage_index > 1:
            self._switch_stage(stage, seed)
        elif self._adapter_policy is not None:
            earlier_adapter = self._continue_earlier_model(stage, self._adapter_policy, seed)
        with self._unpadded_batches(stage, {**rows, "": planned_rows}):
            for name, mitigation in self._active.items():
                with _memory_error_context(name):
                    own_rows = {**rows, **written_rows.get(name, {})}
                    mitigation.on_stage_start(stage, self.model, own_rows, seed=seed)
        if earlier_adapter is not None:
            earlier_adapter.require_unchanged(self.model, stage.name)
        return self._active

    def _unpadded_batches(self, stage: Stage, rows: RowsBySource) -> AbstractContextManager[Any]:
        """Return the context in which mitigations may run the model without padding, as training does."""
        longest_row = max((int(row_lengths(source_rows).max(initial=0)) for source_rows in rows.values()), default=0)
        if not self._active or not longest_row:
            return nullcontext()
        return unpadded_batches(self.model, {**stage.train, "packing": False}, longest_row)

    def react_to_evaluation(self, stage_index: int, scores: Mapping[str, SuiteScores]) -> dict[str, float]:
        """Let the mitigations react to an evaluation within a stage, see `Mitigation.on_evaluation`.

        Returns:
            `<mitigation>/<key>` -> what they returned.
        """
        stage = self.plan.stages[stage_index - 1]
        return {
            f"{name}/{key}": value
            for name, mitigation in self._active.items()
            for key, value in mitigation.on_evaluation(stage, self.model, scores).items()
        }

    def finish_stage(self, stage_index: int, rows: Sequence[TokenizedExample]) -> None:
        """Let the mitigations update their state. rows: the rows that the stage trained on."""
        for mitigation in self._active.values():
            mitigation.on_stage_end(self.plan.stages[stage_index - 1], self.model, rows)

    def variants(self) -> Iterator[tuple[str, str]]:
        """Yield (mitigation, variant) while the model holds other weights; see `Mitigation.variants`."""
        for name, mitigation in self._active.items():
            for variant in mitigation.variants(self.model):
                yield name, variant

    def final_model(self) -> Any:
        """Return the model to save.

        If the weights below its adapter were changed, the adapter is merged: its base model is not stored anywhere.
        """
        if self.merged and save.saves_as_adapter(self.model):
            self.model = save.merge_adapter(self.model)
        return self.model

    # -- between stages -------------------------------------------------------------------------------------------

    def _switch_stage(self, stage: Stage, seed: int) -> None:
        previous_options = self._options
        for name, mitigation in self._active.items():
            self._states[name] = mitigation.state_dict()
        if stage.adapter == "continue":
            if self._stage_mitigations(stage) != previous_options:
                self._create_mitigations(stage)
            return
        self._require_adapter(stage)
        if save.is_peft_model(self.model):
            self._remove_adapter(merge=stage.adapter == "merge")
        else:  # the previous stage trained the weights below the new adapter
            self.merged = True
            for weight in self.model.parameters():
                weight.requires_grad_(True)
        self._create_mitigations(stage, reset=True)
        self._prepare_model(seed)

    def _continue_earlier_model(self, stage: Stage, adapter: str, seed: int) -> EarlierAdapter | None:
        """Prepare the model of an earlier run for the first stage. Returns its adapter, if it is trained further."""
        earlier_adapter = None
        if save.is_peft_model(self.model):
            earlier_adapter = EarlierAdapter(self.model) if adapter == "continue" else None
            self._remove_adapter(merge=adapter == "merge")
        elif adapter == "new":
            what = f"the stage {stage.name!r} has adapter 'new', but the earlier run's model has no adapter"
            raise HarnessError("mode.continual", what, "set its 'adapter' to 'continue'")
        self._create_mitigations(stage)
        self._prepare_model(seed)
        if earlier_adapter is not None:
            earlier_adapter.copy_into(self.model, stage.name)
        return earlier_adapter

    def _remove_adapter(self, *, merge: bool) -> None:
        self.model = save.merge_adapter(self.model) if merge else self.model.unload()
        self.merged = self.merged or merge
        for weight in self.model.parameters():
            weight.requires_grad_(weight.is_floating_point())  # quantized weights have no gradient

    def _create_mitigations(self, stage: Stage, *, reset: bool = False) -> None:
        """Create the mitigations of a stage, each with the state of its earlier stages.

        Args:
            stage: The stage.
            reset: Whether mitigations that change the model start without a state, as their new adapter does.
        """
        self._options = self._stage_mitigations(stage)
        self._active = dict(plan.create_mitigations(self._options, self.registry))
        for name, mitigation in self._active.items():
            if name in self._states and not (reset and type(mitigation).prepare_model is not Mitigation.prepare_model):
                mitigation.load_state_dict(self._states[name])

    def _prepare_model(self, seed: int) -> None:
        for name, mitigation in self._active.items():
            with _memory_error_context(name):
                self.model = mitigation.prepare_model(self.model, seed=seed)
        quantization.reject_trained_weights(self.model, is_adapter=save.saves_as_adapter(self.model))
        for stage in self.plan.stages:  # raises an error before anything is trained
            create_router_loss(self.model, stage.train.get("router_loss", 0))
        if self.plan.train.get("weights", "float32") == "float32":
            upcast_trainable(self.model)
        elif str(loaded_dtype(self.model)) != "torch.bfloat16":
            what = "the computation on this device is not in bfloat16"
            hint = "set train.precision to 'bfloat16', or train.weights to 'float32'"
            raise HarnessError("train.weights", what, hint)

    def _require_adapter(self, stage: Stage) -> None:
        if stage.adapter == "continue" or save.is_peft_model(self.model):
            return
        if stage.adapter == "new" or not self._adds_adapter(stage):
            what = f"the stage {stage.name!r} has adapter {stage.adapter!r}, but the model has no adapter"
            raise HarnessError("mode.continual", what, "add the mitigation 'lora', or set 'adapter' to 'continue'")

    def _adds_adapter(self, stage: Stage) -> bool:
        mitigations = plan.create_mitigations(self._stage_mitigations(stage), self.registry)
        return any(mitigation.adds_adapter for _, mitigation in mitigations)

    def _stage_mitigations(self, stage: Stage) -> Mapping[str, Mapping[str, Any]]:
        return plan.stage_mitigations(self.plan, stage)


@contextmanager
def _memory_error_context(mitigation: str) -> Iterator[None]:
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not device.is_out_of_memory(error):
            raise
        what = "its state does not fit into memory in addition to the weights"
        raise RunError(f"mitigations.{mitigation}", what, "reduce its options, or use a smaller model") from error
