"""The stage that mitigations receive at its start."""

from __future__ import annotations

from types import SimpleNamespace

from harness.interfaces.mitigation import Mitigation
from harness.runner.staged_model import StagedModel
from harness.types import Plan, Stage


class Recorder(Mitigation):
    def on_stage_start(self, stage, model, rows, *, seed):
        self.stage = stage


def test_the_stage_has_its_planned_steps_and_saves(tiny_model):
    recorder, plain = Recorder(), Stage("one", (), {})
    registry = SimpleNamespace(create=lambda kind, name, options: recorder)
    plan = Plan("run", 0, {"path": "tiny"}, ("chatml", {}), {}, {"recorder": {}}, (plain,), ())
    StagedModel(tiny_model, plan, registry, seed=0).start_stage(1, {}, seed=0, planned_steps=6, planned_saves=(3, 6))
    assert (recorder.stage.planned_steps, recorder.stage.planned_saves) == (6, (3, 6))
    assert recorder.stage == plain, "arms share stages that differ in nothing else"
