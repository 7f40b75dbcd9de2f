"""Stacked experts are stored quantized and compute like their dequantized weights, with and without an adapter."""

from __future__ import annotations

import copy
import gc
import weakref

import pytest
import torch
from harness_mitigations import adapter_common
from peft import LoraConfig
from support.architectures import build_architecture

from harness.errors import HarnessError
from harness.model import quantization, quantized_experts
from harness.model.load import load_model
from harness.model.locate import resolve_model
from harness.model.precision import loaded_autocast_context
from harness.model.save import adapter_disabled, merge_adapter

pytest.importorskip("bitsandbytes")

IDS = torch.tensor([[5, 6, 7, 8, 9, 10, 11, 12]])
NF4 = {"bits": 4, "type": "nf4", "double": True}
OPTIONS = {
    "nf4": NF4,
    "fp4": {"bits": 4, "type": "fp4", "double": False},
    "8 bits": {"bits": 8, "type": "nf4", "double": True},
}
LARGEST_GAP = {"nf4": 0.304, "fp4": 0.334, "8 bits": 1 / 127}
"""Between two values of the format, as a fraction of the largest value of a block."""


@pytest.fixture(autouse=True)
def on_cpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


@pytest.fixture(scope="module")
def saved(tokenizer, tmp_path_factory):
    """Return the folder of a saved model by the name of its architecture."""
    folders = {}

    def save(name):
        if name not in folders:
            folders[name] = tmp_path_factory.mktemp("models") / name
            build_architecture(name, tokenizer).save_pretrained(folders[name])
            tokenizer.save_pretrained(folders[name])
        return folders[name]

    return save


def load(folder, options=NF4, *, experts=True, precision="float32"):
    quantized = None if options is None else {"bitsandbytes": {**options, "experts": experts}}
    settings = {"path": str(folder), "attention": "auto", "quantization": quantized}
    return load_model(resolve_model(settings), settings, precision=precision)


def add_lora(model, target="all-linear"):
    config = LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=target)
    adapted = adapter_common.add_adapter("lora", model, config, seed=0)
    torch.manual_seed(1)
    for name, weight in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.1)
    return adapted


def loss_and_gradients(model):
    model.zero_grad()
    loss = model(input_ids=IDS, labels=IDS).loss
    loss.backward()
    return loss.detach(), {name: w.grad.clone() for name, w in model.named_parameters() if w.grad is not None}


def experts_of(model):
    return [module for module in model.modules() if torch.nn.utils.parametrize.is_parametrized(module)]


@pytest.mark.parametrize("name", ["mixtral", "qwen3_moe", "gpt_oss", "llama4", "granitemoe"])
@pytest.mark.parametrize("options", OPTIONS)
def test_each_expert_is_rounded_to_the_nearest_value_of_its_block(saved, name, options):
    original = dict(quantized_experts.expert_weights(load(saved(name), None)))
    model = load(saved(name), OPTIONS[options])
    assert original
    assert not quantized_experts.expert_weights(model)
    assert quantized_experts.has_quantized_experts(model)
    for path, weight in original.items():
        module, _, parameter = path.rpartition(".")
        values = getattr(model.get_submodule(module), parameter)
        stored = model.get_submodule(module).parametrizations[parameter].original
        assert stored.numel() * stored.element_size() == weight.numel() * (1 if options == "8 bits" else 0.5)
        blocks = weight.shape[-1] if options == "8 bits" else 64
        largest = weight.reshape(-1, blocks).abs().amax(1, keepdim=True)
        error = (values - weight).reshape(-1, blocks).abs()
        bound = LARGEST_GAP[options] / 2 * 1.1  # the scales are rounded too
        assert error.max() > 0
        assert (error <= bound * largest).all()


def test_without_the_option_experts_stay_as_they_are(saved):
    model = load(saved("qwen3_moe"), experts=False)
    assert not quantized_experts.has_quantized_experts(model)
    assert quantized_experts.expert_weights(model)


@pytest.mark.parametrize("options", ["nf4", "8 bits"])
def test_experts_quantized_while_loading_equal_those_quantized_afterwards(saved, options):
    loaded = load(saved("mixtral"), OPTIONS[options])
    afterwards = load(saved("mixtral"), OPTIONS[options], experts=False)
    config = quantization.bitsandbytes_config(OPTIONS[options], torch.float32)
    quantized_experts.quantize_experts(afterwards, config)
    with torch.no_grad():
        assert torch.equal(loaded(IDS).logits, afterwards(IDS).logits)


@pytest.mark.parametrize("name", ["qwen3_moe", "gpt_oss"])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_model_computes_like_its_dequantized_weights(saved, name, precision):
    model = load(saved(name), precision=precision)
    with torch.no_grad(), loaded_autocast_context(model):
        expected = model(IDS).logits
        quantization.dequantize(model)
        assert not quantized_experts.has_quantized_experts(model)
        tolerance = 1e-5 if precision == "float32" else 0.1
        torch.testing.assert_close(model(IDS).logits, expected, atol=tolerance, rtol=tolerance)
    with torch.no_grad():
        assert (load(saved(name), None)(IDS).logits - expected.float()).abs().max() > tolerance
    assert all(weight.dtype == getattr(torch, precision) for weight in quantized_experts.expert_weights(model).values())


@pytest.mark.parametrize("name", ["mixtral", "qwen3_moe"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_an_adapter_is_trained_as_on_dequantized_weights(saved, name, checkpointing):
    quantized, plain = load(saved(name)), load(saved(name))
    quantization.dequantize(plain)
    adapted = [add_lora(model) for model in (quantized, plain)]
    assert quantized_experts.has_adapted_experts(adapted[0])
    for model in adapted:
        model.train()
        if checkpointing:
            model.get_base_model().activation_checkpointing_enable()
            model.enable_input_require_grads()
    (loss, gradients), (expected, plain_gradients) = (loss_and_gradients(model) for model in adapted)
    torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-5)
    assert gradients.keys() == plain_gradients.keys()
    assert sum(".experts." in path and gradient.abs().max() > 0 for path, gradient in gradients.items()) == 8
    for path, gradient in gradients.items():
        torch.testing.assert_close(gradient, plain_gradients[path], rtol=1e-3, atol=1e-4)
    again, same = loss_and_gradients(adapted[0])
    assert torch.equal(again, loss), "a pass leaves no adapter behind"
    assert all(torch.equal(same[path], gradient) for path, gradient in gradients.items())


def test_without_its_adapter_the_model_is_the_quantized_base(saved):
    base = load(saved("mixtral"))
    with torch.no_grad():
        expected = base(IDS).logits
        adapted = add_lora(base)
        assert not torch.equal(adapted(input_ids=IDS).logits, expected)
        with adapter_disabled(adapted):
            assert torch.equal(adapted(input_ids=IDS).logits, expected)


def test_the_adapter_is_merged_into_the_dequantized_experts(saved):
    adapted = add_lora(load(saved("mixtral"))).eval()
    with torch.no_grad():
        expected = adapted(input_ids=IDS).logits
        merged = merge_adapter(adapted)
        torch.testing.assert_close(merged(input_ids=IDS).logits, expected, rtol=1e-4, atol=1e-4)
    assert not quantized_experts.has_quantized_experts(merged)
    assert not any("lora" in name for name, _ in merged.named_parameters())


def test_no_dequantized_weight_is_stored_for_the_backward_pass(saved, monkeypatch):
    adapted = add_lora(load(saved("qwen3_moe"))).train()
    created = []
    for kind in (quantized_experts._FourBits, quantized_experts._AddedProducts):
        forward = kind.forward

        def recorded(self, weight, forward=forward):
            result = forward(self, weight)
            created.append(weakref.ref(result))
            return result

        monkeypatch.setattr(kind, "forward", recorded)
    loss = adapted(input_ids=IDS, labels=IDS).loss
    gc.collect()
    assert len(created) == 8  # two weights of two layers, each dequantized and adapted
    assert not any(reference() is not None for reference in created)
    loss.backward()
    assert len(created) > 8
    assert not torch.nn.utils.parametrize._cache


def test_the_memory_of_dequantized_experts_is_that_of_the_largest_layer(saved):
    original = load(saved("qwen3_moe"), None)
    largest = quantized_experts.largest_experts(original)
    assert largest == 4 * (2 * 24 * 32 + 32 * 24)
    assert quantized_experts.dequantized_bytes(original) == 0
    model = load(saved("qwen3_moe"))
    assert quantized_experts.dequantized_bytes(model) == 4 * largest
    assert quantized_experts.dequantized_bytes(add_lora(model)) == 8 * largest


def test_a_model_without_experts_is_refused(saved):
    what = r"^model.quantization.bitsandbytes.experts: a llama model has no stacked weights of experts; set it to false"
    with pytest.raises(HarnessError, match=what):
        load(saved("llama"))


def test_a_copy_of_the_model_is_independent(saved):
    model = load(saved("qwen3_moe"))
    (first, *_), (copied, *_) = experts_of(model), experts_of(copy.deepcopy(model))
    assert first.gate_up_proj is not copied.gate_up_proj
    assert torch.equal(first.gate_up_proj, copied.gate_up_proj)
    copied.parametrizations.gate_up_proj.original.zero_()
    with torch.no_grad():
        arguments = torch.ones(1, 32), torch.zeros(1, 1, dtype=torch.long), torch.ones(1, 1)
        assert not torch.equal(first(*arguments), copied(*arguments))
