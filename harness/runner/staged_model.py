"""The model on its way through the stages: which adapter it carries, and which mitigations are at work in each.

Knows the plan's stages and the verbs of a mitigation. Knows neither data nor scores.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from harness.errors import HarnessError, RunError
from harness.interfaces.mitigation import Mitigation
from harness.model import device, load, save
from harness.registry import Registry
from harness.runner.continue_run import EarlierAdapter
from harness.spec import plan
from harness.types import Plan, Stage, TokenizedExample

RowsBySource = Mapping[str, Sequence[TokenizedExample]]


class StagedModel:
    """The model and its mitigations from the first stage to the last.

    net: the model as it is now. merged: whether its own weights were changed below an adapter: one was merged into
    them, or they were trained themselves before the stage with the first adapter. A mitigation keeps one state over all
    stages that have it, whatever options a stage gives it; one that a stage leaves out neither sees it nor learns from
    it.
    """

    def __init__(
        self, model: Any, plan: Plan, registry: Registry, adapter_policy: str | None = None, *, seed: int
    ) -> None:
        """net: as loaded. Shapes it as the first stage asks for. Raises HarnessError as the mitigations do.

        start: of a model that is an earlier run's result, what becomes of its adapter (see `onward.policy`). It stays
        as it was loaded then, to be measured, until the first stage is entered. seed: see `Mitigation.prepare_model`.
        """
        self.model = model
        self.plan, self.registry = plan, registry
        self._states: dict[str, Mapping[str, Any]] = {}
        self._active: dict[str, Mitigation] = {}
        self._options: Mapping[str, Any] | None = None
        self.merged = False
        self._adapter_policy = adapter_policy
        if adapter_policy is None:
            self._create_mitigations(plan.stages[0])
            self._prepare_model(seed)
            for stage in plan.stages[1:2]:  # said now, and not after a stage of training
                self._require_adapter(stage)

    @property
    def active_mitigations(self) -> Mapping[str, Mitigation]:
        """The mitigations of the stage that is entered, in their order."""
        return self._active

    def start_stage(self, stage_index: int, rows: RowsBySource, *, seed: int) -> Mapping[str, Mitigation]:
        """Make the model ready for a stage and let its mitigations remember where it begins. number: from 1.

        rows: of the sources that mitigations name. seed: see `Mitigation.on_stage_start`.
        Raises HarnessError when the stage asks for another adapter of a model that has none. That weights which go on
        keep their shape, the plan has seen to (`harness.spec.plan`).
        """
        stage = self.plan.stages[stage_index - 1]
        held = None
        if stage_index > 1:
            self._switch_stage(stage, seed)
        elif self._adapter_policy is not None:
            held = self._continue_earlier_model(stage, self._adapter_policy, seed)
        for name, mitigation in self._active.items():
            with _memory_error_context(name):
                mitigation.on_stage_start(stage, self.model, rows, seed=seed)
        if held is not None:
            held.require_unchanged(self.model, stage.name)
        return self._active

    def finish_stage(self, stage_index: int, rows: Sequence[TokenizedExample]) -> None:
        """Let the mitigations of the stage learn from it. rows: those that it trained on."""
        for mitigation in self._active.values():
            mitigation.on_stage_end(self.plan.stages[stage_index - 1], self.model, rows)

    def variants(self) -> Iterator[tuple[str, str]]:
        """(mitigation, variant) of the other weights that the stage just left offers; see `Mitigation.variants`."""
        for name, mitigation in self._active.items():
            for variant in mitigation.variants(self.model):
                yield name, variant

    def final_model(self) -> Any:
        """The model as it is to be saved: with its last adapter merged where earlier ones were, for then the adapter's
        own base model is nowhere to be had."""
        if self.merged and save.saves_as_adapter(self.model):
            self.model = save.merge_adapter(self.model)
        return self.model

    # -- between two stages -------------------------------------------------------------------------------------------

    def _switch_stage(self, stage: Stage, seed: int) -> None:
        before = self._options
        for name, mitigation in self._active.items():
            self._states[name] = mitigation.state_dict()
        if stage.adapter == "continue":
            if self._stage_mitigations(stage) != before:
                self._create_mitigations(stage)
            return
        self._require_adapter(stage)
        if save.is_peft_model(self.model):
            self._remove_adapter(merge=stage.adapter == "merge")
        else:  # the weights were trained themselves, below the adapter that comes now
            self.merged = True
            for weight in self.model.parameters():
                weight.requires_grad_(True)
        self._create_mitigations(stage, reset=True)
        self._prepare_model(seed)

    def _continue_earlier_model(self, stage: Stage, adapter: str, seed: int) -> EarlierAdapter | None:
        """Shape an earlier run's result for the first stage; what its adapter was, when it is trained on."""
        held = None
        if save.is_peft_model(self.model):
            held = EarlierAdapter(self.model) if adapter == "continue" else None
            self._remove_adapter(merge=adapter == "merge")
        elif adapter == "new":
            what = f"the stage {stage.name!r} asks for adapter 'new', and the earlier run's model is whole"
            raise HarnessError("mode.continual", what, "leave 'adapter' at 'continue'")
        self._create_mitigations(stage)
        self._prepare_model(seed)
        if held is not None:
            held.copy_into(self.model, stage.name)
        return held

    def _remove_adapter(self, *, merge: bool) -> None:
        self.model = save.merge_adapter(self.model) if merge else self.model.unload()
        self.merged = self.merged or merge
        for weight in self.model.parameters():
            weight.requires_grad_(True)

    def _create_mitigations(self, stage: Stage, *, reset: bool = False) -> None:
        """Make the mitigations of a stage, each with the state that it has come to.

        reset: those that shape the model begin without one, as their new adapter does.
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
        load.upcast_trainable(self.model)

    def _require_adapter(self, stage: Stage) -> None:
        if stage.adapter == "continue" or save.is_peft_model(self.model):
            return
        if stage.adapter == "new" or not self._adds_adapter(stage):
            what = f"the stage {stage.name!r} asks for adapter {stage.adapter!r}, and the model has no adapter"
            raise HarnessError("mode.continual", what, "add the mitigation 'lora', or leave 'adapter' at 'continue'")

    def _adds_adapter(self, stage: Stage) -> bool:
        made = plan.create_mitigations(self._stage_mitigations(stage), self.registry)
        return any(one.adds_adapter for _, one in made)

    def _stage_mitigations(self, stage: Stage) -> Mapping[str, Mapping[str, Any]]:
        return plan.stage_mitigations(self.plan, stage)


@contextmanager
def _memory_error_context(mitigation: str) -> Iterator[None]:
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not device.is_out_of_memory(error):
            raise
        what = "what it puts beside the weights does not fit into memory"
        raise RunError(f"mitigations.{mitigation}", what, "let it hold less, or take a smaller model") from error
