"""Rows on one line get the logits and gradients of the rows alone; every other batch gets sdpa attention."""

from __future__ import annotations

import pytest
import torch
import transformers

from harness.model import row_attention

SIZES = {
    "vocab_size": 60, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "max_position_embeddings": 128, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
FAMILIES = {
    "Llama": {"num_key_value_heads": 2},
    "Qwen2": {"num_key_value_heads": 1},
    "Qwen3": {"num_key_value_heads": 2, "head_dim": 8},
    "GPTNeoX": {"rotary_pct": 0.5},
    "GPT2": {"n_inner": 48},
    "OPT": {"ffn_dim": 48, "word_embed_proj_dim": 32},
}
LENGTHS = (5, 1, 9)


def create_model(family, **changes):
    torch.manual_seed(0)
    config = getattr(transformers, f"{family}Config")(**{**SIZES, **FAMILIES.get(family, {}), **changes})
    name = "GPT2LMHeadModel" if family == "GPT2" else f"{family}ForCausalLM"
    return getattr(transformers, name)._from_config(config, attn_implementation="sdpa").eval()


def rows_of(lengths):
    torch.manual_seed(1)
    return [torch.randint(3, 60, (1, length)) for length in lengths]


@pytest.mark.parametrize("family", FAMILIES)
def test_rows_on_a_line_get_the_logits_and_gradients_of_the_rows_alone(family):
    model, rows = create_model(family), rows_of(LENGTHS)
    positions = torch.cat([torch.arange(length) for length in LENGTHS])[None]
    alone = torch.cat([model(input_ids=row, use_cache=False).logits[0] for row in rows])
    alone.logsumexp(-1).sum().backward()
    expected = [weight.grad.clone() for weight in model.parameters()]
    model.zero_grad()
    with row_attention.row_attention(model):
        line = model(input_ids=torch.cat(rows, 1), position_ids=positions, use_cache=False).logits[0]
        line.logsumexp(-1).sum().backward()
    torch.testing.assert_close(line, alone, rtol=1e-5, atol=1e-6)
    for weight, gradient in zip(model.parameters(), expected, strict=True):
        torch.testing.assert_close(weight.grad, gradient, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", ["Llama", "GPT2"])
def test_padded_batches_and_generation_are_those_of_sdpa(family):
    model = create_model(family)
    ids = torch.randint(3, 60, (2, 7))
    mask = torch.ones_like(ids)
    mask[0, :3] = 0
    options = {"attention_mask": mask, "max_new_tokens": 5, "do_sample": False}
    logits, answers = model(input_ids=ids, attention_mask=mask).logits, model.generate(ids, **options)
    single = model.generate(ids[1:], max_new_tokens=5, do_sample=False)
    with row_attention.row_attention(model):
        assert torch.equal(model(input_ids=ids, attention_mask=mask).logits, logits)
        assert torch.equal(model.generate(ids, **options), answers)
        assert torch.equal(model.generate(ids[1:], max_new_tokens=5, do_sample=False), single)
    assert model.config._attn_implementation == "sdpa"


def test_a_window_shorter_than_the_rows_is_not_supported():
    model = create_model("Mistral", num_key_value_heads=2, sliding_window=8)
    assert row_attention.supports_row_attention(model, longest_row=8)
    assert not row_attention.supports_row_attention(model, longest_row=9)
    model.set_attn_implementation("eager")
    assert not row_attention.supports_row_attention(model, longest_row=8)


@pytest.mark.parametrize(
    ("positions", "lengths"), [([0, 1, 2, 0, 1, 0], [3, 2, 1]), ([0], [1]), ([3, 4, 0, 1], [2, 2]), ([5, 6], [2])]
)
def test_a_row_starts_where_the_position_is_zero(positions, lengths):
    assert row_attention.row_lengths(torch.tensor(positions)) == lengths
