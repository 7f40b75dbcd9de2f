"""Penalties and the log with loss scaling, using a real scaler without the device that float16 needs."""

from __future__ import annotations

import json
import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from harness.errors import RunError
from harness.interfaces.mitigation import Mitigation
from harness.training.stage_trainer import StageTrainer
from harness.training.step_recovery import Tolerance


class ConstantPenalty(Mitigation):
    """Adds 0.5 to every gradient, before clipping; records the learning rates it gets."""

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
        return {"tail": 3.0}


@pytest.fixture
def trainer():
    """A stand-in for the trainer after a scaled backward pass; the three weights have the gradients 1, 2 and 2."""
    model = nn.Linear(3, 1, bias=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    scaler.scale(model(torch.tensor([1.0, 2.0, 2.0])).sum()).backward()
    assert model.weight.grad.tolist() == [[1024, 2048, 2048]]

    def unscale():
        scaler.unscale_(optimizer)

    trainer = SimpleNamespace(
        mitigations={"constant": ConstantPenalty()},
        accelerator=SimpleNamespace(
            scaler=scaler, unscale_gradients=unscale, reduce=lambda value, how: value, optimizer_step_was_skipped=False
        ),
        args=SimpleNamespace(max_grad_norm=1.0, fp16=True),
        state=SimpleNamespace(global_step=0, max_steps=2),
        loss_sums={"loss": torch.tensor(1.5)},
        penalties={},
        step_log=SimpleNamespace(stage_name="stage", skipped_steps=0, sequences_per_step=1),
        collator=SimpleNamespace(sequences=[], rows=[]),
        tolerance=Tolerance(),
        step_is_skipped=False,
        batch_parts=1,
        unwrapped_model=model,
        optimizer=optimizer,
    )
    for name in (
        "_add_weight_penalties",
        "skips_step",
        "_describe_step",
        "_describe_rows",
        "_fetch_metrics",
        "_call_before_step",
    ):
        setattr(trainer, name, getattr(StageTrainer, name).__get__(trainer))
    return trainer


def test_penalty_before_clipping_is_added_to_unscaled_gradients(trainer):
    norm = StageTrainer._clip_grad_norm(trainer, trainer.unwrapped_model)
    gradient = torch.tensor([1.5, 2.5, 2.5])
    assert float(norm) == pytest.approx(float(gradient.norm()))
    assert torch.allclose(trainer.unwrapped_model.weight.grad[0], gradient / gradient.norm(), atol=1e-5)
    before = trainer.unwrapped_model.weight.detach().clone()
    trainer.accelerator.scaler.step(trainer.optimizer)  # the gradients are already unscaled
    assert torch.allclose(before - trainer.unwrapped_model.weight, gradient / gradient.norm(), atol=1e-5)


def test_infinite_gradients_skip_the_step(trainer):
    trainer.unwrapped_model.weight.grad[0, 0] = math.inf
    StageTrainer._clip_grad_norm(trainer, trainer.unwrapped_model)
    before = trainer.unwrapped_model.weight.detach().clone()
    trainer.accelerator.scaler.step(trainer.optimizer)
    assert torch.equal(before, trainer.unwrapped_model.weight)


def test_infinite_gradient_norm_is_missing_in_the_log_with_loss_scaling(trainer):
    trainer.unwrapped_model.weight.grad[0, 0] = math.inf
    StageTrainer._clip_grad_norm(trainer, trainer.unwrapped_model)
    metrics = StageTrainer.before_optimizer_step(trainer)
    assert metrics == {"loss": 1.5, "penalty/constant": 2.0, "constant/tail": 3.0}
    json.dumps(metrics, allow_nan=False)
    trainer.loss_sums, trainer.state.global_step = {"loss": torch.tensor(1.5)}, 1
    trainer.grad_norm = torch.tensor(4.0)
    assert StageTrainer.before_optimizer_step(trainer) == {"loss": 1.5, "grad_norm": 4.0}, "stage stats are logged once"
    trainer.loss_sums, trainer.args.fp16, trainer.grad_norm = {"loss": torch.tensor(1.5)}, False, math.inf
    with pytest.raises(RunError, match="grad_norm is inf"):
        StageTrainer.before_optimizer_step(trainer)


def test_skipped_step_has_the_learning_rate_zero(trainer):
    for skipped in (False, True):
        trainer.accelerator.optimizer_step_was_skipped = skipped
        StageTrainer.after_optimizer_step(trainer, 0.25)
    assert trainer.mitigations["constant"].rates == [0.25, 0.0]
