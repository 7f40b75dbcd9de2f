"""Sums over logits in chunks, and their gradients, equal those over the whole logits."""

from __future__ import annotations

import copy

import pytest
import torch
from support.architectures import ARCHITECTURES, build_architecture
from torch.nn import functional

from harness.model import chunked_logits
from harness.model.chunked_logits import ChunkedLogits
from harness.model.output_head import logits_at

POSITIONS = torch.tensor([[0, 1, 1, 0, 1], [1, 1, 0, 0, 1]], dtype=torch.bool)
SCALED = ("cohere", "granite", "gemma2", "minicpm3", "falcon_h1")


def batch_of(model):
    torch.manual_seed(3)
    return {"input_ids": torch.randint(10, model.config.get_text_config().vocab_size, (2, 5)), "use_cache": False}


def sums(model, whole, monkeypatch, *, is_chunked=True):
    """Return a sum of log-likelihoods and the gradients of all weights, from whole logits or from chunks of 4."""
    model, targets = copy.deepcopy(model), torch.arange(6) + 20

    def chunk_sum(logits, place):
        return functional.cross_entropy(logits.float(), targets[place], reduction="sum")

    if whole:
        with logits_at(model, POSITIONS):
            value = chunk_sum(model(**batch_of(model)).logits[0], slice(0, 6))
    else:
        vocabulary = model.get_output_embeddings().weight.shape[0]
        monkeypatch.setattr(chunked_logits, "MAX_LOGIT_BYTES", 4 * 4 * vocabulary)
        logits = ChunkedLogits(model, batch_of(model), POSITIONS, model)
        assert list(logits.chunks()) == ([slice(0, 4), slice(4, 6)] if is_chunked else [slice(0, 6)])
        value = logits.sum(chunk_sum)
    (2 * value).backward()
    return value.detach(), {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}


def require_equal(model, monkeypatch, *, is_chunked=True):
    value, gradients = sums(model, True, monkeypatch)
    chunked_value, chunked_gradients = sums(model, False, monkeypatch, is_chunked=is_chunked)
    torch.testing.assert_close(chunked_value, value, rtol=1e-6, atol=0)
    assert chunked_gradients.keys() == gradients.keys()
    largest = max(
        float(gradient.abs().max()) for gradient in gradients.values()
    )  # some gradients are 0 but for rounding
    for name, gradient in gradients.items():
        scale = max(float(gradient.abs().max()), largest / 100)
        torch.testing.assert_close(chunked_gradients[name], gradient, rtol=1e-5, atol=1e-5 * scale, msg=name)


@pytest.mark.parametrize("name", ["llama", "llama-tied", "gpt2", "opt", "phi", *SCALED])
def test_chunks_equal_whole_logits(name, tokenizer, monkeypatch):
    model = build_architecture(name, tokenizer)
    for key in ("logit_scale", "logits_scaling", "lm_head_multiplier"):
        if key in vars(model.config):
            setattr(model.config, key, 0.25)
            vars(model)[key] = 0.25
    if name == "gemma2":
        assert model.config.final_logit_softcapping
    require_equal(model, monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_architecture_is_chunked(name, tokenizer, monkeypatch):
    require_equal(build_architecture(name, tokenizer), monkeypatch, is_chunked=name != "llama4")


def test_an_adapter_trains_through_the_frozen_head(tiny_model, monkeypatch):
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(tiny_model, LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False))
    require_equal(model, monkeypatch)


def test_a_head_that_is_not_a_linear_layer_gets_whole_logits(tiny_model, monkeypatch):
    tiny_model.lm_head = torch.nn.Sequential(tiny_model.lm_head)
    model = tiny_model
    value = ChunkedLogits(model, batch_of(model), POSITIONS, model)
    assert list(value.chunks()) == [slice(0, 6)]
    with logits_at(model, POSITIONS):
        expected = model(**batch_of(model)).logits[0]
    torch.testing.assert_close(value.chunk(slice(0, 6)), expected)


def test_no_logits_are_larger_than_a_chunk(tiny_model, monkeypatch):
    sizes = []
    monkeypatch.setattr(chunked_logits, "MAX_LOGIT_BYTES", 2 * 4 * tiny_model.lm_head.weight.shape[0])
    logits = ChunkedLogits(tiny_model, batch_of(tiny_model), POSITIONS, tiny_model)
    logits.sum(lambda chunk, place: sizes.append(chunk.shape[0]) or chunk.sum()).backward()
    assert sizes == [2, 2, 2]
    assert "forward" not in vars(tiny_model.lm_head)
    whole = torch.cat([logits.chunk(place) for place in logits.chunks()])
    with logits_at(tiny_model, POSITIONS):
        torch.testing.assert_close(whole, tiny_model(**batch_of(tiny_model)).logits[0])


def test_a_batch_without_positions_has_a_sum_of_0_and_gradients_of_0(tiny_model):
    positions = torch.zeros_like(POSITIONS)
    value = ChunkedLogits(tiny_model, batch_of(tiny_model), positions, tiny_model).sum(lambda logits, _: logits.sum())
    value.backward()
    assert value.item() == 0
    assert all(not weight.grad.any() for weight in tiny_model.parameters() if weight.grad is not None)
    assert tiny_model.model.layers[0].mlp.up_proj.weight.grad is not None


def test_16_bit_autocast_accumulates_the_gradient_in_float32(tiny_model, monkeypatch):
    with torch.autocast("cpu", torch.bfloat16):
        value, gradients = sums(tiny_model, True, monkeypatch)
        chunked_value, chunked_gradients = sums(tiny_model, False, monkeypatch)
    torch.testing.assert_close(chunked_value, value, rtol=1e-3, atol=0)
    head = "model.embed_tokens.weight"  # tied
    assert chunked_gradients[head].dtype == torch.float32
    torch.testing.assert_close(chunked_gradients[head], gradients[head], rtol=0.05, atol=0.02)
