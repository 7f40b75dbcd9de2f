"""Weights that move are float32; base and tuned model are computed alike; memory errors are told for what they are."""

from __future__ import annotations

import contextlib

import pytest
import torch
from peft import LoraConfig, get_peft_model

from harness.errors import HarnessError
from harness.model import device, load, locate, save


def adapted(model):
    return get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM"))


def test_weights_that_move_become_float32_and_frozen_ones_stay(tiny_model):
    net = tiny_model.to(torch.bfloat16)
    net.model.embed_tokens.weight.requires_grad = False
    load.upcast_trainable(net)
    assert net.model.embed_tokens.weight.dtype is torch.bfloat16
    assert {w.dtype for w in net.parameters() if w.requires_grad} == {torch.float32}


def test_tied_weights_stay_tied_when_they_become_float32(tiny_model):
    net = tiny_model.to(torch.bfloat16)
    load.upcast_trainable(net)
    assert net.lm_head.weight is net.model.embed_tokens.weight


def test_float32_is_computed_without_autocast_and_bfloat16_with_it(tiny_model):
    assert isinstance(load.autocast_context(tiny_model, "float32"), contextlib.nullcontext)
    load.upcast_trainable(tiny_model.to(torch.bfloat16))
    with load.autocast_context(tiny_model, "bfloat16"):
        assert torch.is_autocast_enabled("cpu")
        assert tiny_model(torch.tensor([[7, 8, 9]])).logits.isfinite().all()


def test_the_base_of_an_adapted_model_is_the_model_before_it(tiny_model):
    ids = torch.tensor([[7, 8, 9]])
    before = tiny_model(ids).logits.detach()
    net = adapted(tiny_model)
    with torch.no_grad():
        for name, weight in net.named_parameters():
            if "lora_B" in name:
                weight.fill_(0.5)
    assert not torch.equal(net(ids).logits, before)
    with save.base_model(net):
        assert torch.equal(net(ids).logits, before)


def test_the_base_of_a_model_without_adapter_is_itself(tiny_model):
    with save.base_model(tiny_model) as net:
        assert net is tiny_model


def test_a_skeleton_has_the_models_weights_and_no_values(tiny_model, tokenizer, tmp_path):
    tiny_model.save_pretrained(tmp_path / "m")
    tokenizer.save_pretrained(tmp_path / "m")
    settings = {"path": str(tmp_path / "m"), "revision": None, "trust_remote_code": False}
    skeleton = load.load_on_meta(locate.resolve_model(settings), settings)
    assert skeleton.device.type == "meta"
    assert load.parameter_count(skeleton) == load.parameter_count(tiny_model)
    net = adapted(skeleton)
    assert (
        0 < load.parameter_count(net, trainable=True) < load.parameter_count(net) - load.parameter_count(tiny_model) + 1
    )


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), True),
        (MemoryError(), True),
        (
            RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
            True,
        ),
        (RuntimeError("shapes do not fit"), False),
        (HarnessError("a", "b"), False),
    ],
)
def test_out_of_memory_is_known_on_every_device(error, told):
    assert device.is_out_of_memory(error) is told
