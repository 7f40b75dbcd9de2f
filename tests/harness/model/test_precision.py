"""Trained weights are float32, and base and tuned model compute in the same precision."""

from __future__ import annotations

import contextlib

import pytest
import torch
from support.architectures import build_architecture

from harness.model import precision
from harness.model.load import load_model
from harness.model.locate import ModelLocation
from harness.model.save import save_model

CPU = torch.device("cpu")


def test_trained_weights_become_float32_and_frozen_weights_keep_their_dtype(tiny_model):
    model = tiny_model.to(torch.bfloat16)
    model.model.embed_tokens.weight.requires_grad = False
    original_dtypes = precision.upcast_trainable(model)
    assert model.model.embed_tokens.weight.dtype is torch.bfloat16
    assert {weight.dtype for weight in model.parameters() if weight.requires_grad} == {torch.float32}
    assert set(original_dtypes) == {weight for weight in model.parameters() if weight.requires_grad}
    assert set(original_dtypes.values()) == {torch.bfloat16}


def test_frozen_weights_become_float32_too_when_included(tiny_model):
    model = tiny_model.to(torch.bfloat16).requires_grad_(False)
    assert precision.upcast_trainable(model) == {}
    precision.upcast_trainable(model, include_frozen=True)
    assert {weight.dtype for weight in model.parameters()} == {torch.float32}


def test_tied_weights_stay_tied_when_they_become_float32(tiny_model):
    model = tiny_model.to(torch.bfloat16)
    precision.upcast_trainable(model)
    assert model.lm_head.weight is model.model.embed_tokens.weight


def test_float32_computes_without_autocast_and_bfloat16_with_it(tiny_model):
    assert isinstance(precision.autocast_context(tiny_model, "float32"), contextlib.nullcontext)
    precision.upcast_trainable(tiny_model.to(torch.bfloat16))
    with precision.autocast_context(tiny_model, "bfloat16"):
        assert torch.is_autocast_enabled("cpu")
        assert tiny_model(torch.tensor([[7, 8, 9]])).logits.isfinite().all()


@pytest.mark.parametrize(("name", "dtype"), [("auto", None), ("float32", None), ("bfloat16", torch.bfloat16)])
def test_cpu_computes_without_autocast_by_default(name, dtype):
    assert precision.autocast_dtype(name, CPU) is dtype


@pytest.fixture
def saved(tmp_path, tokenizer):
    """Saves a random model of an architecture in bfloat16, with predictions far from uniform; returns its folder."""

    def save(name):
        model = build_architecture(name, tokenizer).to(torch.bfloat16)
        with torch.no_grad():
            for weight in model.parameters():
                if weight.dim() == 1:
                    weight.add_(torch.randn_like(weight) / 3)
        model.save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
        return tmp_path / name

    return save


def load_bfloat16(folder):
    return load_model(ModelLocation("folder", str(folder), None, ""), {}, precision="bfloat16")


def logits(model):
    with torch.no_grad(), precision.autocast_context(model, "bfloat16"):
        return model(torch.arange(5, 35)[None]).logits


@pytest.mark.parametrize("name", ["llama", "llama-tied", "gpt2", "gemma2", "mixtral", "qwen3_moe"])
def test_equal_weights_have_equal_outputs_whether_they_are_trained_or_frozen(saved, name):
    folder = saved(name)
    frozen, trained = load_bfloat16(folder).requires_grad_(False), load_bfloat16(folder)
    precision.upcast_trainable(trained)
    precision.match_dtypes(frozen, trained)
    assert torch.equal(logits(frozen), logits(trained))
    assert torch.bfloat16 in {weight.dtype for weight in frozen.parameters()}
    assert {weight.dtype for weight in trained.parameters()} == {torch.float32}


def test_reference_follows_the_dtypes_below_an_adapter(saved):
    from peft import LoraConfig, get_peft_model

    reference, trained = load_bfloat16(saved("mixtral")), load_bfloat16(saved("mixtral"))
    precision.upcast_trainable(trained)
    adapted = get_peft_model(trained, LoraConfig(r=2, target_modules=["q_proj"]))
    precision.match_dtypes(reference, adapted)
    assert torch.equal(logits(reference), logits(adapted))


def test_weights_are_stored_in_16_bits_only_where_no_value_changes(saved):
    model = load_bfloat16(saved("llama"))
    with precision.stored_dtypes(model) as dtype:
        assert dtype is torch.bfloat16
        assert {weight.dtype for weight in model.parameters()} == {torch.bfloat16}
    assert model.model.norm.weight.dtype is torch.float32
    model.model.norm.weight.data += 1e-6
    with precision.stored_dtypes(model) as dtype:
        assert dtype is torch.float32
        assert model.model.norm.weight.dtype is torch.float32


@pytest.mark.parametrize("is_trained", [False, True])
def test_saved_model_is_loaded_with_the_weights_that_it_had(saved, tmp_path, tokenizer, is_trained):
    from transformers import AutoModelForCausalLM

    model = load_bfloat16(saved("llama"))
    if is_trained:
        model.model.norm.weight.data += 1e-6
    save_model(model, tokenizer, tmp_path / "out")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert loaded.dtype == (torch.float32 if is_trained else torch.bfloat16)
    for name, weight in model.named_parameters():
        assert torch.equal(loaded.get_parameter(name).float(), weight.float()), name
