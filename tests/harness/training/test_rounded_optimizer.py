"""Weights in bfloat16: small steps are not lost, and a resumed stage continues bit for bit."""

from __future__ import annotations

import copy

import pytest
import torch

from harness.registry import discover_plugins
from harness.training.checkpoint import complete_checkpoints
from harness.training.memory_estimate import estimate_stage
from harness.training.rounded_optimizer import RoundedOptimizer, round_at_random

OPTIMIZERS = {"adamw": {"betas": [0.9, 0.999], "eps": 1e-8}, "lion": {"betas": [0.9, 0.99]}}
NARROW = {"weights": "bfloat16", "precision": "bfloat16"}


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_a_value_is_rounded_to_a_neighbor_and_its_mean_is_the_value():
    for value in (1.0 + 1e-3, -3.3e-5, 123.456):
        rounded = round_at_random(torch.full((100_000,), value), generator()).float()
        spacing = abs(value) * 2**-7
        assert len(rounded.unique()) == 2
        assert (rounded - value).abs().max() < spacing
        deviation = spacing / 2 / 100_000**0.5
        assert abs(float(rounded.double().mean()) - value) < 5 * deviation + 1e-7 * abs(value)


def test_numbers_of_bfloat16_stay():
    values = torch.randn(1000, generator=generator()).bfloat16().float()
    assert torch.equal(round_at_random(values, generator(1)).float(), values)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_step_that_plain_bfloat16_loses_is_made_on_average(name):
    """One step moves each weight by a ten-thousandth of itself; the distance of two numbers of bfloat16 is 2^-7."""
    component = discover_plugins().create("optimizers", name, OPTIMIZERS[name])
    settings = {"learning_rate": 1e-4, "weight_decay": 0.0}

    def build(groups):
        return component.build(groups, settings)

    def step(rounded):
        weight = torch.nn.Parameter(torch.ones(400, 500, dtype=torch.bfloat16))
        groups = [{"params": [weight], "lr": 1e-4, "weight_decay": 0.0}]
        optimizer = RoundedOptimizer(build, groups, seed=0) if rounded else build(groups)
        weight.grad = torch.ones_like(weight)
        optimizer.step()
        return weight, optimizer

    plain, _ = step(rounded=False)
    assert torch.equal(plain, torch.ones_like(plain))
    weight, optimizer = step(rounded=True)
    assert weight.dtype == torch.bfloat16
    moved = 1 - float(weight.double().mean().detach())
    assert moved == pytest.approx(1e-4, rel=0.1)
    states = [value for value in optimizer.state[weight].values() if value.ndim > 0]
    assert states
    assert {value.dtype for value in states} == {torch.float32}


def test_weights_in_float32_are_trained_as_without_rounding():
    component = discover_plugins().create("optimizers", "adamw", OPTIMIZERS["adamw"])
    weights = [torch.nn.Parameter(torch.linspace(-1, 1, 12).reshape(3, 4)) for _ in range(2)]
    groups = [[{"params": [weight], "lr": 0.1, "weight_decay": 0.1}, {"params": [], "lr": 0.1}] for weight in weights]
    settings = {"learning_rate": 0.1}
    optimizers = [
        component.build(groups[0], settings),
        RoundedOptimizer(lambda own: component.build(own, settings), groups[1], 0),
    ]
    for _ in range(3):
        for weight, optimizer in zip(weights, optimizers, strict=True):
            weight.grad = weight.detach() ** 2
            optimizer.step()
    assert torch.equal(*weights)


def narrow(tiny_model):
    """Return the model with the dtypes that it has when it is loaded in bfloat16."""
    model = copy.deepcopy(tiny_model)
    for module in model.modules():
        if isinstance(module, torch.nn.Linear):
            module.weight.data = module.weight.data.bfloat16()
    return model


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["transformers", "trl"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_resumed_stage_equals_the_uninterrupted_one(engine, optimizer, tiny_model, make_stage, fit, tmp_path):
    settings = {"optimizer": {optimizer: OPTIMIZERS[optimizer]}, "engine": engine, "save_steps": 2, **NARROW}
    data = make_stage(**settings)
    whole, result, _ = fit(data, model=narrow(tiny_model))
    dtypes = {weight.dtype for name, weight in whole.named_parameters() if "proj" in name}
    assert dtypes == {torch.bfloat16}
    assert result.steps == 3
    assert not torch.equal(whole.lm_head.weight, narrow(tiny_model).lm_head.weight)
    checkpoint, _ = complete_checkpoints(tmp_path / "checkpoints")  # after steps 2 and 3
    resumed, again, _ = fit(data, model=narrow(tiny_model), resume=checkpoint)
    assert [entry["loss"] for entry in again.log] == [entry["loss"] for entry in result.log]
    for (name, weight), other in zip(whole.named_parameters(), resumed.parameters(), strict=True):
        assert torch.equal(weight, other), name


def test_no_copy_of_the_weights_in_float32_is_stored(tiny_model, make_stage, fit):
    matrices = sum(module.weight.numel() for module in tiny_model.modules() if isinstance(module, torch.nn.Linear))
    weights = sum(weight.numel() for weight in tiny_model.parameters())
    _, result, _ = fit(make_stage(**NARROW), model=narrow(tiny_model))
    assert result.memory["weights"] == result.memory["gradients"] == 4 * weights - 2 * matrices
    assert result.memory["optimizer"] == pytest.approx(8 * weights, rel=0.01)
    _, wide, _ = fit(make_stage(precision="bfloat16"), model=narrow(tiny_model))
    assert wide.memory["gradients"] == 4 * weights
    estimate = estimate_stage(narrow(tiny_model), 1, 0, torch.bfloat16, 8.0, False, keeps_16_bits=True)
    assert estimate.gradients == result.memory["gradients"]
    assert estimate.weights == 2 * (weights - matrices), "autocast copies the embeddings and norms"


def test_the_loss_falls_at_a_rate_whose_steps_bfloat16_would_lose(tiny_model, make_stage, make_rows, fit):
    rows = make_rows(8)
    order = tuple((index,) for index in range(8)) * 12
    settings = {**NARROW, "learning_rate": 2e-4, "batch_size": 8}
    _, result, _ = fit(make_stage(rows, order, (96,), **settings), model=narrow(tiny_model))
    assert result.log[-1]["loss"] < result.log[0]["loss"]
