"""A packed row gives the loss and the gradients that it gives alone."""

from __future__ import annotations

import importlib.util
import random

import pytest
import torch

from harness.training.collator import Collator
from harness.training.loss import summed_nll
from harness.training.packing_isolation import uses_varlen_attention, verify_packing_isolation
from harness.types import TokenizedExample

SIZES = {
    "vocab_size": 60, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "max_position_embeddings": 128, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
FAMILIES = {
    "Llama": {"num_key_value_heads": 2},
    "Qwen2": {"num_key_value_heads": 2, "tie_word_embeddings": True},
    "GPTNeoX": {"rotary_pct": 0.5},
    "Mistral": {"num_key_value_heads": 2, "sliding_window": 4},
}
SLOTS = [(0, 1, 2), (3,), (4, 5)]


def made(family, attention):
    import transformers

    torch.manual_seed(0)
    config = getattr(transformers, f"{family}Config")(**SIZES, **FAMILIES[family])
    return getattr(transformers, f"{family}ForCausalLM")._from_config(config, attn_implementation=attention).train()


@pytest.fixture(scope="module")
def rows():
    numbers = random.Random(0)
    found = []
    for index, length in enumerate((9, 4, 11, 17, 6, 5)):
        ids = tuple(numbers.randrange(3, 60) for _ in range(length))
        start = numbers.randint(0, length - 2)
        found.append(TokenizedExample(f"{index:016x}", "source", ids, (-100,) * start + ids[start:]))
    return found


def loss_and_gradients(model, batches):
    """Summed over the batches, each as the collator makes it."""
    model.zero_grad()
    there = next(model.parameters()).device
    total = 0.0
    for batch in batches:
        loss = summed_nll(model, model, {name: tensor.to(there) for name, tensor in batch.items()})
        loss.backward()
        total += loss.item()
    return total, {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}


def distance(model, rows, flat):
    """Relative distance of loss and of gradients of packed slots from those of their rows alone."""
    packed, gradients = loss_and_gradients(model, [Collator(rows, SLOTS, pad_id=0, flatten=flat)([0, 1, 2])])
    single = Collator(rows, [(n,) for n in range(len(rows))], pad_id=0)
    alone, expected = loss_and_gradients(model, [single([n]) for n in range(len(rows))])
    assert gradients.keys() == expected.keys()
    largest = max(float(gradient.abs().max()) for gradient in expected.values())
    gaps = [float((gradients[name] - gradient).abs().max()) for name, gradient in expected.items()]
    return abs(packed - alone) / alone, max(gaps) / largest


@pytest.mark.parametrize("flat", [False, True], ids=["padded", "flat"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_packed_row_gives_the_loss_and_gradients_of_its_members_alone(family, attention, flat, rows):
    model = made(family, attention)
    loss, gradients = distance(model, rows, flat)
    assert loss < 1e-5
    assert gradients < 1e-5
    verify_packing_isolation(model)


def test_rows_that_see_each_other_would_give_other_losses_and_gradients(rows, monkeypatch):
    import transformers.masking_utils as masks

    monkeypatch.setattr(masks, "find_packed_sequence_indices", lambda position_ids: None)
    loss, gradients = distance(made("Llama", "sdpa"), rows, False)
    assert loss > 1e-3
    assert gradients > 1e-2


def test_varlen_kernels_take_a_line_apart_only_when_it_is_the_only_one(rows):
    from transformers.modeling_flash_attention_utils import _is_packed_sequence

    for flat, apart in ((True, True), (False, False)):
        positions = Collator(rows, SLOTS, pad_id=0, flatten=flat)([0, 2])["position_ids"]
        assert bool(_is_packed_sequence(positions, positions.shape[0])) is apart


def test_a_flash_kernel_gets_its_rows_in_one_line():
    model = made("Llama", "sdpa")
    assert not uses_varlen_attention(model)
    model.config._attn_implementation = "flash_attention_2"
    assert uses_varlen_attention(model)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_on_cuda_as_well(attention, rows):
    model = made("Llama", attention).cuda()
    assert max(distance(model, rows, False)) < 1e-5
    verify_packing_isolation(model)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
@pytest.mark.skipif(importlib.util.find_spec("flash_attn") is None, reason="flash-attn is not installed")
def test_with_varlen_kernels_as_well(rows):
    model = made("Llama", "flash_attention_2").to("cuda", torch.bfloat16)
    loss, gradients = distance(model, rows, True)
    # bfloat16 keeps 8 bits: a thousand times coarser than float32, and a tenth of what open attention would show.
    assert loss < 1e-2
    assert gradients < 5e-2
    verify_packing_isolation(model)
