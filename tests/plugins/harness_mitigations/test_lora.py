"""LoRA: begins at the base, moves nothing else, and depends on the seed alone."""

from __future__ import annotations

import copy

import pytest
import torch
from harness_mitigations.lora import Lora

from harness.errors import HarnessError

torch.set_num_threads(1)
IDS = torch.tensor([[5, 6, 7, 8]])


def lora(**options):
    return Lora(**({"rank": 4, "alpha": None, "dropout": 0.0, "target": "all-linear"} | options))


def moved(model):
    """The adapted model with every adapter weight away from its start."""
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_" in name:
                weight.add_(0.1)
    return model


def test_the_adapted_model_starts_as_the_base_bit_for_bit(tiny_model):
    before = tiny_model(IDS).logits
    assert torch.equal(lora().model(tiny_model)(IDS).logits, before)


def test_disabled_adapter_equals_the_base_bit_for_bit(tiny_model):
    before = tiny_model(IDS).logits
    model = moved(lora().model(tiny_model))
    assert not torch.allclose(model(IDS).logits, before, atol=1e-3)
    with model.disable_adapter():
        assert torch.equal(model(IDS).logits, before)


def test_only_adapters_move_and_every_linear_layer_but_the_head_has_one(tiny_model):
    linear = [name for name, part in tiny_model.named_modules() if isinstance(part, torch.nn.Linear)]
    model = lora(rank=3).model(tiny_model)
    trainable = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    assert all("lora_A" in name or "lora_B" in name for name in trainable)
    assert len(trainable) == 2 * (len(linear) - 1)
    assert {min(weight.shape) for weight in trainable.values()} == {3}


@pytest.mark.parametrize(("alpha", "scale"), [(None, 2.0), (4, 1.0), (10.0, 2.5)])
def test_alpha_over_rank_scales_the_change(alpha, scale, tiny_model):
    model = moved(lora(alpha=alpha).model(tiny_model))
    layer = model.base_model.model.model.layers[0].mlp.up_proj
    x = torch.randn(2, 32)
    change = layer(x) - layer.base_layer(x)
    expected = scale * x @ layer.lora_A["default"].weight.T @ layer.lora_B["default"].weight.T
    assert torch.allclose(change, expected, atol=1e-5)


@pytest.mark.parametrize("target", ["q_proj", ["q_proj"]])
def test_a_name_is_a_name_and_no_pattern(target, tiny_model):
    model = lora(target=target).model(tiny_model)
    adapted = {name.split(".lora_")[0] for name, _ in model.named_parameters() if "lora_" in name}
    assert {name.rsplit(".", 1)[1] for name in adapted} == {"q_proj"}


def test_first_adapter_depends_on_the_seed_alone(tiny_model):
    def first(seed, draws):
        torch.manual_seed(seed)
        torch.rand(draws)
        model = lora().model(copy.deepcopy(tiny_model))
        return model.base_model.model.model.layers[0].mlp.up_proj.lora_A["default"].weight

    assert torch.equal(first(1, 0), first(1, 7))
    assert not torch.equal(first(1, 0), first(2, 0))


def test_making_an_adapter_draws_no_random_number_that_others_would_get(tiny_model):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    lora().model(tiny_model)
    assert torch.equal(torch.rand(3), expected)


def test_adapter_weights_are_float32_on_a_bfloat16_base(tiny_model):
    model = lora().model(tiny_model.bfloat16())
    assert {weight.dtype for name, weight in model.named_parameters() if "lora_" in name} == {torch.float32}


def test_dropout_acts_in_training_only(tiny_model):
    model = moved(lora(dropout=0.5).model(tiny_model))
    model.train()
    assert not torch.equal(model(IDS).logits, model(IDS).logits)
    model.eval()
    assert torch.equal(model(IDS).logits, model(IDS).logits)


def test_a_second_adapter_is_refused(tiny_model):
    model = lora().model(tiny_model)
    with pytest.raises(HarnessError, match=r"mitigations\.lora: the model already carries an adapter"):
        lora().model(model)


@pytest.mark.parametrize("target", ["lm_head", ["q_proj", "lm_head"]])
def test_an_adapter_on_the_head_is_refused(target, tiny_model):
    with pytest.raises(HarnessError, match=r"mitigations\.lora\.target: the head cannot be adapted"):
        lora(target=target).model(tiny_model)


def test_a_module_that_is_not_there_is_an_error(tiny_model):
    with pytest.raises(HarnessError, match=r"mitigations\.lora\.target: .*query_key_value.*all-linear"):
        lora(target=["query_key_value"]).model(tiny_model)
