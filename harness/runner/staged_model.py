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
from harness.runner.continue_run import Held
from harness.spec import plan
from harness.types import Plan, Row, Stage

Rows = Mapping[str, Sequence[Row]]


class Chain:
    """The model and its mitigations from the first stage to the last.

    net: the model as it is now. merged: whether its own weights were changed below an adapter: one was merged into
    them, or they were trained themselves before the stage with the first adapter. A mitigation keeps one state over all
    stages that have it, whatever options a stage gives it; one that a stage leaves out neither sees it nor learns from
    it.
    """

    def __init__(self, net: Any, planned: Plan, registry: Registry, start: str | None = None) -> None:
        """net: as loaded. Shapes it as the first stage asks for. Raises HarnessError as the mitigations do.

        start: of a model that is an earlier run's result, what becomes of its adapter (see `onward.policy`). It stays
        as it was loaded then, to be measured, until the first stage is entered.
        """
        self.net = net
        self.plan, self.registry = planned, registry
        self._states: dict[str, Mapping[str, Any]] = {}
        self._active: dict[str, Mitigation] = {}
        self._options: Mapping[str, Any] | None = None
        self.merged = False
        self._start = start
        if start is None:
            self._take(planned.stages[0])
            self._shape()
            for stage in planned.stages[1:2]:  # said now, and not after a stage of training
                self._refuse_without_adapter(stage)

    @property
    def active(self) -> Mapping[str, Mitigation]:
        """The mitigations of the stage that is entered, in their order."""
        return self._active

    def enter(self, number: int, rows: Rows) -> Mapping[str, Mitigation]:
        """Make the model ready for a stage and let its mitigations remember where it begins. number: from 1.

        rows: of the sources that mitigations name. Raises HarnessError when the stage asks for another adapter of a
        model that has none. That weights which go on keep their shape, the plan has seen to (`harness.spec.plan`).
        """
        stage = self.plan.stages[number - 1]
        held = None
        if number > 1:
            self._change(stage)
        elif self._start is not None:
            held = self._go_on(stage, self._start)
        for name, mitigation in self._active.items():
            with _memory(name):
                mitigation.begin_stage(stage, self.net, rows)
        if held is not None:
            held.refuse_another_start(self.net, stage.name)
        return self._active

    def leave(self, number: int, rows: Sequence[Row]) -> None:
        """Let the mitigations of the stage learn from it. rows: those that it trained on."""
        for mitigation in self._active.values():
            mitigation.end_stage(self.plan.stages[number - 1], self.net, rows)

    def variants(self) -> Iterator[tuple[str, str]]:
        """(mitigation, variant) of the other weights that the stage just left offers; see `Mitigation.variants`."""
        for name, mitigation in self._active.items():
            for variant in mitigation.variants(self.net):
                yield name, variant

    def whole(self) -> Any:
        """The model as it is to be saved: with its last adapter merged where earlier ones were, for then the adapter's
        own base model is nowhere to be had."""
        if self.merged and save.saves_adapter(self.net):
            self.net = save.merge(self.net)
        return self.net

    # -- between two stages -------------------------------------------------------------------------------------------

    def _change(self, stage: Stage) -> None:
        before = self._options
        for name, mitigation in self._active.items():
            self._states[name] = mitigation.state_dict()
        if stage.adapter == "continue":
            if self._mitigations(stage) != before:
                self._take(stage)
            return
        self._refuse_without_adapter(stage)
        if save.is_adapted(self.net):
            self._leave_adapter(merge=stage.adapter == "merge")
        else:  # the weights were trained themselves, below the adapter that comes now
            self.merged = True
            for weight in self.net.parameters():
                weight.requires_grad_(True)
        self._take(stage, anew=True)
        self._shape()

    def _go_on(self, stage: Stage, adapter: str) -> Held | None:
        """Shape an earlier run's result for the first stage; what its adapter was, when it is trained on."""
        held = None
        if save.is_adapted(self.net):
            held = Held(self.net) if adapter == "continue" else None
            self._leave_adapter(merge=adapter == "merge")
        elif adapter == "new":
            what = f"the stage {stage.name!r} asks for adapter 'new', and the earlier run's model is whole"
            raise HarnessError("mode.continual", what, "leave 'adapter' at 'continue'")
        self._take(stage)
        self._shape()
        if held is not None:
            held.put_into(self.net, stage.name)
        return held

    def _leave_adapter(self, *, merge: bool) -> None:
        self.net = save.merge(self.net) if merge else self.net.unload()
        self.merged = self.merged or merge
        for weight in self.net.parameters():
            weight.requires_grad_(True)

    def _take(self, stage: Stage, *, anew: bool = False) -> None:
        """Make the mitigations of a stage, each with the state that it has come to.

        anew: those that shape the model begin without one, as their new adapter does.
        """
        self._options = self._mitigations(stage)
        self._active = dict(plan.mitigations(self._options, self.registry))
        for name, mitigation in self._active.items():
            if name in self._states and not (anew and type(mitigation).model is not Mitigation.model):
                mitigation.load_state_dict(self._states[name])

    def _shape(self) -> None:
        for name, mitigation in self._active.items():
            with _memory(name):
                self.net = mitigation.model(self.net)
        load.promote(self.net)

    def _refuse_without_adapter(self, stage: Stage) -> None:
        if stage.adapter == "continue" or save.is_adapted(self.net):
            return
        if stage.adapter == "new" or not self._brings_an_adapter(stage):
            what = f"the stage {stage.name!r} asks for adapter {stage.adapter!r}, and the model has no adapter"
            raise HarnessError("mode.continual", what, "add the mitigation 'lora', or leave 'adapter' at 'continue'")

    def _brings_an_adapter(self, stage: Stage) -> bool:
        made = plan.mitigations(self._mitigations(stage), self.registry)
        return any(one.adapts for _, one in made)

    def _mitigations(self, stage: Stage) -> Mapping[str, Mapping[str, Any]]:
        return plan.of_stage(self.plan, stage)


@contextmanager
def _memory(mitigation: str) -> Iterator[None]:
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not device.out_of_memory(error):
            raise
        what = "what it puts beside the weights does not fit into memory"
        raise RunError(f"mitigations.{mitigation}", what, "let it hold less, or take a smaller model") from error
