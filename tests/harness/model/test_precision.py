"""Trained weights are float32, and base and tuned model compute in the same precision."""

from __future__ import annotations

import contextlib

import pytest
import torch

from harness.model import precision

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
