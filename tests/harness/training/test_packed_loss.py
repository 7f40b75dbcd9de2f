"""Packed rows give the loss and the gradients of the same rows alone."""

from __future__ import annotations

import importlib.util
import random
from itertools import pairwise

import pytest
import torch
from transformers import AttentionInterface, AttentionMaskInterface

from harness.training.collator import Collator
from harness.training.loss import summed_nll
from harness.training.packing_isolation import (
    takes_row_boundaries,
    uses_varlen_attention,
    verify_packing_isolation,
)
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
SEQUENCES = [(0, 1, 2), (3,), (4, 5)]


def create_model(family, attention):
    import transformers

    torch.manual_seed(0)
    config = getattr(transformers, f"{family}Config")(**SIZES, **FAMILIES[family])
    return getattr(transformers, f"{family}ForCausalLM")._from_config(config, attn_implementation=attention).train()


@pytest.fixture(scope="module")
def rows():
    generator = random.Random(0)
    rows = []
    for index, length in enumerate((9, 4, 11, 17, 6, 5)):
        ids = tuple(generator.randrange(3, 60) for _ in range(length))
        start = generator.randint(0, length - 2)
        rows.append(TokenizedExample(f"{index:016x}", "source", ids, (-100,) * start + ids[start:]))
    return rows


def loss_and_gradients(model, batches):
    """Return loss and gradients, summed over the batches."""
    model.zero_grad()
    device = next(model.parameters()).device
    total = 0.0
    for batch in batches:
        on_device = {name: value.to(device) if torch.is_tensor(value) else value for name, value in batch.items()}
        loss = summed_nll(model, model, on_device)
        loss.backward()
        total += loss.item()
    return total, {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}


def relative_difference(model, rows, flatten):
    """Return the relative difference of loss and gradients between packed sequences and their rows alone."""
    collator = Collator(rows, SEQUENCES, 0, flatten=flatten, boundaries=takes_row_boundaries(model))
    packed, gradients = loss_and_gradients(model, [collator([0, 1, 2])])
    single = Collator(rows, [(index,) for index in range(len(rows))], pad_id=0)
    alone, expected = loss_and_gradients(model, [single([index]) for index in range(len(rows))])
    assert gradients.keys() == expected.keys()
    largest = max(float(gradient.abs().max()) for gradient in expected.values())
    differences = [float((gradients[name] - gradient).abs().max()) for name, gradient in expected.items()]
    return abs(packed - alone) / alone, max(differences) / largest


@pytest.mark.parametrize("flatten", [False, True], ids=["padded", "flat"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("family", FAMILIES)
def test_packed_sequence_gives_the_loss_and_gradients_of_its_rows_alone(family, attention, flatten, rows):
    model = create_model(family, attention)
    loss, gradients = relative_difference(model, rows, flatten)
    assert loss < 1e-5
    assert gradients < 1e-5
    verify_packing_isolation(model)


def test_rows_that_attend_to_each_other_would_give_another_loss_and_gradients(rows, monkeypatch):
    import transformers.masking_utils as masks

    monkeypatch.setattr(masks, "find_packed_sequence_indices", lambda position_ids: None)
    loss, gradients = relative_difference(create_model("Llama", "sdpa"), rows, False)
    assert loss > 1e-3
    assert gradients > 1e-2


def test_varlen_kernels_separate_rows_only_in_a_single_line(rows):
    from transformers.modeling_flash_attention_utils import _is_packed_sequence

    for flatten, separated in ((True, True), (False, False)):
        positions = Collator(rows, SEQUENCES, pad_id=0, flatten=flatten)([0, 2])["position_ids"]
        assert bool(_is_packed_sequence(positions, positions.shape[0])) is separated


def test_flash_attention_needs_its_rows_in_one_line():
    model = create_model("Llama", "sdpa")
    assert not uses_varlen_attention(model)
    model.config._attn_implementation = "flash_attention_2"
    assert uses_varlen_attention(model)


def flash_attention_on_cpu(calls):
    """Return an attention that reads its rows from the boundaries alone, as FlashAttention's kernel does."""

    def attend(module, query, key, value, attention_mask, scaling=None, **options):
        calls.append(options)
        assert attention_mask is None
        groups = query.shape[1] // key.shape[1]
        key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
        if "cu_seq_lens_q" not in options:  # a row alone
            ends = [0, query.shape[2]]
        else:
            assert options["cu_seq_lens_q"].dtype == torch.int32
            ends = options["cu_seq_lens_q"].tolist()
            assert ends == options["cu_seq_lens_k"].tolist()
            longest = max(end - start for start, end in pairwise(ends))
            assert (options["max_length_q"], options["max_length_k"]) == (longest, longest)
        outputs = [
            torch.nn.functional.scaled_dot_product_attention(
                *(tensor[:, :, start:end] for tensor in (query, key, value)), scale=scaling, is_causal=True
            )
            for start, end in pairwise(ends)
        ]
        return torch.cat(outputs, 2).transpose(1, 2).contiguous(), None

    return attend


@pytest.fixture
def flash_model():
    """A model with such an attention, and the options of its calls."""
    calls = []
    AttentionInterface.register("fake_flash", flash_attention_on_cpu(calls))
    AttentionMaskInterface.register("fake_flash", lambda *arguments, **options: None)
    model = create_model("Llama", "sdpa")
    model.config._attn_implementation = "fake_flash"
    return model, calls


def test_flash_attention_gets_the_boundaries_of_its_rows(flash_model, rows):
    model, calls = flash_model
    verify_packing_isolation(model)
    assert calls[0]["cu_seq_lens_q"].tolist() == [0, 5, 13, 20, 28]
    assert max(relative_difference(model, rows, flatten=True)) < 1e-5


def test_a_batch_of_an_empty_sequence_has_the_boundaries_of_its_padding():
    batch = Collator([], [()], 0, flatten=True, boundaries=True)([0])
    assert (batch["cu_seq_lens_q"].tolist(), batch["max_length_k"]) == ([0, 1], 1)


def test_only_flash_attention_gets_the_boundaries_of_rows(rows):
    model = create_model("Llama", "sdpa")
    assert not takes_row_boundaries(model)
    assert "cu_seq_lens_q" not in Collator(rows, SEQUENCES, 0, flatten=True)([0])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_packed_sequence_equals_its_rows_alone_on_cuda(attention, rows):
    model = create_model("Llama", attention).cuda()
    assert max(relative_difference(model, rows, False)) < 1e-5
    verify_packing_isolation(model)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.skipif(importlib.util.find_spec("flash_attn") is None, reason="flash-attn is not installed")
def test_packed_sequence_equals_its_rows_alone_with_varlen_kernels(rows):
    model = create_model("Llama", "flash_attention_2").to("cuda", torch.bfloat16)
    loss, gradients = relative_difference(model, rows, True)
    # bfloat16 has 8 bits: coarser than float32 by 1000, and a tenth of what attention across rows would cause.
    assert loss < 1e-2
    assert gradients < 5e-2
    verify_packing_isolation(model)
