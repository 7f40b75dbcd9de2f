"""Frozen factors add up, stay frozen, leave the base model unchanged, and are saved in one plain adapter."""

from __future__ import annotations

import copy

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model

from harness.model import frozen_lora, save

IDS = torch.tensor([[5, 6, 7, 8, 9]])


@pytest.fixture
def adapted(tiny_model):
    """The tiny model with a LoRA adapter of scale 3 that changes its outputs."""
    torch.manual_seed(1)
    config = LoraConfig(task_type="CAUSAL_LM", r=2, lora_alpha=6, target_modules="all-linear", init_lora_weights=False)
    return get_peft_model(copy.deepcopy(tiny_model), config).eval()


def random_factors(model, rank, seed):
    """Return random factors of this rank for every adapted layer."""
    torch.manual_seed(seed)
    layers = frozen_lora.lora_layers(model)
    return {
        name: (torch.randn(rank, layer.in_features), 0.1 * torch.randn(layer.out_features, rank))
        for name, layer in layers.items()
    }


def merge_in_float64(tiny_model, model, *factors):
    """Return the tiny model with adapter and factors multiplied and added to its weights, in float64."""
    plain = copy.deepcopy(tiny_model).double().eval()
    modules = dict(plain.named_modules())
    with torch.no_grad():
        for name, layer in frozen_lora.lora_layers(model).items():
            weight = modules[name.removeprefix("base_model.model.")].weight
            a, b = (getattr(layer, f"lora_{letter}")["default"].weight.double() for letter in "AB")
            weight.add_(layer.scaling["default"] * b @ a)
            for pairs in factors:
                weight.add_(pairs[name][1].double() @ pairs[name][0].double())
    return plain


def test_frozen_factors_add_to_the_adapter(tiny_model, adapted):
    first, second = random_factors(adapted, 3, 1), random_factors(adapted, 1, 2)
    frozen_lora.add_frozen_lora(adapted, first)
    frozen_lora.add_frozen_lora(adapted, second)
    expected = merge_in_float64(tiny_model, adapted, first, second)(IDS).logits
    assert torch.allclose(adapted(IDS).logits.double(), expected, atol=1e-5)
    assert {a.shape[0] for a, _ in frozen_lora.frozen_lora(adapted).values()} == {4}


def test_base_model_is_unchanged_bit_for_bit_with_frozen_factors(tiny_model, adapted):
    expected = tiny_model.eval()(IDS).logits
    frozen_lora.add_frozen_lora(adapted, random_factors(adapted, 3, 1))
    before = adapted(IDS).logits
    assert float((before - expected).detach().abs().max()) > 1e-2
    with save.adapter_disabled(adapted):
        assert torch.equal(adapted(IDS).logits, expected)
    assert torch.equal(adapted(IDS).logits, before)


def test_frozen_factors_stay_frozen_after_the_adapter_was_disabled(adapted):
    before = {name for name, weight in adapted.named_parameters() if weight.requires_grad}
    frozen_lora.add_frozen_lora(adapted, random_factors(adapted, 3, 1))
    with save.adapter_disabled(adapted):
        pass
    assert {name for name, weight in adapted.named_parameters() if weight.requires_grad} == before
    assert not any("kept" in name for name in before)


def test_replace_replaces_factors_and_empty_factors_remove_them(adapted):
    plain = adapted(IDS).logits
    frozen_lora.add_frozen_lora(adapted, random_factors(adapted, 3, 1))
    with_first = adapted(IDS).logits
    frozen_lora.add_frozen_lora(adapted, random_factors(adapted, 2, 2), replace=True)
    frozen_lora.add_frozen_lora(adapted, random_factors(adapted, 3, 1), replace=True)
    assert torch.equal(adapted(IDS).logits, with_first)
    frozen_lora.add_frozen_lora(adapted, {}, replace=True)
    assert frozen_lora.frozen_lora(adapted) == {}
    assert torch.equal(adapted(IDS).logits, plain)


def test_adding_factors_does_not_advance_the_random_state(adapted):
    factors = random_factors(adapted, 2, 1)
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    frozen_lora.add_frozen_lora(adapted, factors)
    assert torch.equal(torch.rand(3), expected)


def test_generation_uses_frozen_factors(tiny_model, adapted):
    factors = random_factors(adapted, 3, 1)
    frozen_lora.add_frozen_lora(adapted, factors)
    expected = merge_in_float64(tiny_model, adapted, factors).generate(IDS, max_new_tokens=4, do_sample=False)
    assert torch.equal(adapted.generate(input_ids=IDS, max_new_tokens=4, do_sample=False), expected)


def test_saved_model_is_one_plain_adapter_that_peft_loads(tiny_model, adapted, tokenizer, tmp_path):
    frozen_lora.add_frozen_lora(adapted, random_factors(adapted, 3, 1))
    save.save_model(adapted, tokenizer, tmp_path / "model")
    loaded = PeftModel.from_pretrained(copy.deepcopy(tiny_model), tmp_path / "model").eval()
    assert list(loaded.peft_config) == ["default"]
    assert loaded.peft_config["default"].r == 5
    assert torch.allclose(loaded(IDS).logits, adapted(IDS).logits, atol=1e-5)
    with loaded.disable_adapter():
        assert torch.equal(loaded(IDS).logits, tiny_model.eval()(IDS).logits)


def test_peft_checkpoint_restores_frozen_factors(adapted, tmp_path):
    fresh = copy.deepcopy(adapted)
    frozen_lora.add_frozen_lora(adapted, random_factors(adapted, 3, 1))
    adapted.save_pretrained(tmp_path)
    frozen_lora.restore_frozen_lora(fresh, tmp_path)
    assert torch.equal(fresh(IDS).logits, adapted(IDS).logits)


def test_peft_checkpoint_without_frozen_factors_removes_them(adapted, tmp_path):
    adapted.save_pretrained(tmp_path)
    frozen_lora.add_frozen_lora(adapted, random_factors(adapted, 3, 1))
    frozen_lora.restore_frozen_lora(adapted, tmp_path)
    assert frozen_lora.frozen_lora(adapted) == {}


def test_model_without_adapter_has_no_frozen_factors(tiny_model):
    assert frozen_lora.frozen_lora(tiny_model) == {}
    assert frozen_lora.lora_layers(tiny_model) == {}
