"""Initializations of adapters: against closed forms and against those of peft."""

from __future__ import annotations

import copy

import pytest
import torch
from harness_mitigations import lora_init
from peft import LoraConfig, get_peft_model
from peft.tuners.lora.config import CordaConfig
from peft.tuners.lora.corda import preprocess_corda
from torch import nn

SHAPES = [(9, 6), (6, 9), (7, 7)]


class LinearModel(nn.Module):
    def __init__(self, shape):
        super().__init__()
        self.up = nn.Linear(shape[1], shape[0], bias=False)

    def forward(self, x):
        return self.up(x)


@pytest.fixture(params=SHAPES, ids=str)
def linear_model(request):
    torch.manual_seed(3)
    return LinearModel(request.param)


def peft_initial_change(linear_model, kind, rank, alpha, **options):
    """Return s B A of peft's initialization, the part that it subtracts from the weight."""
    config = LoraConfig(r=rank, lora_alpha=alpha, target_modules=["up"], init_lora_weights=kind, **options)
    layer = get_peft_model(linear_model, config).base_model.model.up
    return layer.get_delta_weight("default")


@pytest.mark.parametrize("kind", ["pissa", "olora"])
def test_initial_change_equals_that_of_peft(kind, linear_model):
    weight, s = linear_model.up.weight.detach().clone(), 1.5
    a, b = lora_init.pissa_factors(weight, 4, s) if kind == "pissa" else lora_init.olora_factors(weight, 4)
    assert a.shape == (4, weight.shape[1])
    assert b.shape == (weight.shape[0], 4)
    assert torch.allclose(s * b @ a, peft_initial_change(linear_model, kind, 4, 6), atol=1e-5)


def test_pissa_is_the_best_approximation_of_its_rank(linear_model):
    weight = linear_model.up.weight.detach()
    a, b = lora_init.pissa_factors(weight, 3, 2.0)
    error = torch.linalg.matrix_norm(weight - 2.0 * b @ a)
    assert torch.allclose(error**2, torch.linalg.svdvals(weight)[3:].square().sum(), rtol=1e-4)
    assert torch.allclose(a.norm(), b.norm(), rtol=1e-5)


def test_olora_has_orthonormal_columns(linear_model):
    _, b = lora_init.olora_factors(linear_model.up.weight, 4)
    assert torch.allclose(b.T @ b, torch.eye(4), atol=1e-5)


def test_corda_equals_that_of_peft_with_the_same_covariance(linear_model):
    weight, s = linear_model.up.weight.detach().clone(), 0.5
    torch.manual_seed(0)
    inputs = torch.rand(40, weight.shape[1]) + 0.2
    inputs[0, 0] = 1.5  # peft divides by the largest
    inputs = inputs / inputs.max()
    a, b = lora_init.corda_factors(weight, inputs.T @ inputs, 2, s)
    config = CordaConfig(corda_method="kpm")
    lora = LoraConfig(r=2, lora_alpha=1, target_modules=["up"], init_lora_weights="corda", corda_config=config)
    preprocess_corda(linear_model, lora, run_model=lambda: linear_model(inputs[None]))
    layer = get_peft_model(linear_model, lora).base_model.model.up
    assert torch.allclose(s * b @ a, layer.get_delta_weight("default"), atol=2e-4)


def test_corda_preserves_the_outputs_of_inputs_in_a_subspace():
    torch.manual_seed(0)
    weight, basis = torch.randn(8, 8), torch.linalg.qr(torch.randn(8, 8))[0]
    inputs = torch.randn(100, 5) @ basis[:5]
    a, b = lora_init.corda_factors(weight, inputs.T @ inputs / 100, 3, 1.0)
    kept, free = inputs[:10] @ (b @ a).T, basis[5:] @ (b @ a).T
    assert float(kept.abs().max()) < 0.05 * float(free.abs().max())


def test_corda_does_not_depend_on_the_scale_of_the_covariance():
    torch.manual_seed(0)
    weight, inputs = torch.randn(6, 5), torch.randn(50, 5)
    one = lora_init.corda_factors(weight, inputs.T @ inputs, 2, 1.0)
    two = lora_init.corda_factors(weight, 1e4 * inputs.T @ inputs, 2, 1.0)
    assert torch.allclose(one[1] @ one[0], two[1] @ two[0], atol=1e-5)
    assert torch.allclose(one[0].norm(dim=1), two[0].norm(dim=1), rtol=1e-4)


def test_covariances_exclude_padding_and_equal_inputs_share_one(tiny_model, make_rows):
    rows = make_rows(11)
    layers = {name: part for name, part in tiny_model.named_modules() if isinstance(part, nn.Linear)}
    layers.pop("lm_head")
    covariances = lora_init.input_covariances(tiny_model, layers, rows)
    name = "model.layers.1.mlp.down_proj"
    layer_inputs = []
    handle = layers[name].register_forward_pre_hook(lambda module, inputs: layer_inputs.append(inputs[0][0]))
    with torch.no_grad():
        for row in rows:
            tiny_model.eval()(torch.tensor([row.input_ids]))
    handle.remove()
    x = torch.cat(layer_inputs)
    assert len(x) == sum(len(row.input_ids) for row in rows)
    assert torch.allclose(covariances[name], x.T @ x / len(x), rtol=1e-4, atol=1e-7)
    assert covariances["model.layers.0.self_attn.q_proj"] is covariances["model.layers.0.self_attn.v_proj"]
    assert covariances["model.layers.0.self_attn.q_proj"] is not covariances["model.layers.0.mlp.up_proj"]
    assert covariances["model.layers.0.self_attn.q_proj"] is not covariances["model.layers.1.self_attn.q_proj"]
    assert set(covariances) == set(layers)


def test_measuring_covariances_removes_hooks_and_restores_the_mode(tiny_model, make_rows):
    layers = {"q": tiny_model.model.layers[0].self_attn.q_proj}
    tiny_model.train()
    before = copy.copy(layers["q"]._forward_pre_hooks)
    lora_init.input_covariances(tiny_model, layers, make_rows(2))
    assert layers["q"]._forward_pre_hooks == before
    assert tiny_model.training
