"""Pulls and the log under loss scaling, on a real scaler without the device that float16 needs."""

from __future__ import annotations

import json
import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from harness.errors import RunError
from harness.interfaces.mitigation import Mitigation
from harness.training.trainer import StageTrainer


class Push(Mitigation):
    """Adds 0.5 to every gradient, before clipping; keeps the learning rates that it is told."""

    penalty_timing = "before_clip"

    def __init__(self):
        self.rates = []

    def add_weight_penalty(self, model):
        for weight in model.parameters():
            weight.grad += 0.5
        return torch.tensor(2.0)

    def on_step_end(self, model, learning_rate):
        self.rates.append(learning_rate)

    def stage_stats(self):
        return {"found": 3.0}


@pytest.fixture
def scaled():
    """What a trainer has after a scaled backward pass over a line of three weights whose gradient is 1, 2 and 2."""
    model = nn.Linear(3, 1, bias=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    scaler.scale(model(torch.tensor([1.0, 2.0, 2.0])).sum()).backward()
    assert model.weight.grad.tolist() == [[1024, 2048, 2048]]

    def unscale():
        scaler.unscale_(optimizer)

    trainer = SimpleNamespace(
        mitigations={"push": Push()},
        accelerator=SimpleNamespace(
            scaler=scaler, unscale_gradients=unscale, reduce=lambda value, how: value, optimizer_step_was_skipped=False
        ),
        args=SimpleNamespace(max_grad_norm=1.0, fp16=True),
        state=SimpleNamespace(global_step=0, max_steps=2),
        loss_sums={"loss": torch.tensor(1.5)},
        penalties={},
        stage_name="stage",
        unwrapped_model=model,
        optimizer=optimizer,
    )
    for name in ("_add_weight_penalties", "_raise_unless_finite", "_reduce_loss_sums"):
        setattr(trainer, name, getattr(StageTrainer, name).__get__(trainer))
    return trainer


def test_a_pull_before_clipping_is_added_to_gradients_without_their_loss_scale(scaled):
    norm = StageTrainer._clip_grad_norm(scaled, scaled.unwrapped_model)
    whole = torch.tensor([1.5, 2.5, 2.5])
    assert float(norm) == pytest.approx(float(whole.norm()))
    assert torch.allclose(scaled.unwrapped_model.weight.grad[0], whole / whole.norm(), atol=1e-5)
    before = scaled.unwrapped_model.weight.detach().clone()
    scaled.accelerator.scaler.step(scaled.optimizer)  # it knows that the scale is gone already
    assert torch.allclose(before - scaled.unwrapped_model.weight, whole / whole.norm(), atol=1e-5)


def test_infinite_gradients_still_leave_the_step_out(scaled):
    scaled.unwrapped_model.weight.grad[0, 0] = math.inf
    StageTrainer._clip_grad_norm(scaled, scaled.unwrapped_model)
    before = scaled.unwrapped_model.weight.detach().clone()
    scaled.accelerator.scaler.step(scaled.optimizer)
    assert torch.equal(before, scaled.unwrapped_model.weight)


def test_what_was_not_finite_by_design_is_left_out_of_the_log(scaled):
    scaled.unwrapped_model.weight.grad[0, 0] = math.inf
    StageTrainer._clip_grad_norm(scaled, scaled.unwrapped_model)
    logged = StageTrainer.before_optimizer_step(scaled)
    assert logged == {"loss": 1.5, "penalty/push": 2.0, "push/found": 3.0}
    json.dumps(logged, allow_nan=False)
    scaled.loss_sums, scaled.state.global_step = {"loss": torch.tensor(1.5)}, 1
    scaled.grad_norm = torch.tensor(4.0)
    assert StageTrainer.before_optimizer_step(scaled) == {"loss": 1.5, "grad_norm": 4.0}, "facts are told once"
    scaled.loss_sums, scaled.args.fp16, scaled.grad_norm = {"loss": torch.tensor(1.5)}, False, math.inf
    with pytest.raises(RunError, match="grad_norm is inf"):
        StageTrainer.before_optimizer_step(scaled)


def test_a_step_that_was_left_out_had_no_learning_rate(scaled):
    for skipped in (False, True):
        scaled.accelerator.optimizer_step_was_skipped = skipped
        StageTrainer.after_optimizer_step(scaled, 0.25)
    assert scaled.mitigations["push"].rates == [0.25, 0.0]
