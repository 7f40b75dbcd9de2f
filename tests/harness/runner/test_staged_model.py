"""The stage that mitigations receive at its start."""

from __future__ import annotations

from types import SimpleNamespace

from harness.interfaces.mitigation import Mitigation
from harness.runner.staged_model import StagedModel
from harness.types import Plan, Stage, TokenizedExample


class Recorder(Mitigation):
    def on_stage_start(self, stage, model, rows, *, seed):
        self.stage = stage


def test_the_stage_has_its_planned_steps_saves_and_rows(tiny_model):
    recorder, plain = Recorder(), Stage("one", (), {"precision": "float32", "packing": False})
    registry = SimpleNamespace(create=lambda kind, name, options: recorder)
    plan = Plan("run", 0, {"path": "tiny"}, ("chatml", {}), {}, {"recorder": {}}, (plain,), ())
    rows = (TokenizedExample("row", "source", (5, 6, 7), (-100, -100, 7)),)
    staged_model = StagedModel(tiny_model, plan, registry, seed=0)
    staged_model.start_stage(1, {}, seed=0, planned_steps=6, planned_saves=(3, 6), planned_rows=rows)
    assert (recorder.stage.planned_steps, recorder.stage.planned_saves) == (6, (3, 6))
    assert recorder.stage.planned_rows == rows
    assert recorder.stage == plain, "arms share stages that differ in nothing else"
