"""Rows on one line get the logits and gradients of the rows alone; every other batch gets sdpa attention.

The attention of a GPU, which pads rows of similar length, is also tested on the CPU.
"""

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


@pytest.fixture(params=["each row", "padded rows"])
def kernel(request, monkeypatch):
    if request.param == "padded rows":
        monkeypatch.setattr(row_attention, "_attend_to_each_row", row_attention._attend_to_padded_rows)


@pytest.mark.parametrize("family", FAMILIES)
def test_rows_on_a_line_get_the_logits_and_gradients_of_the_rows_alone(family, kernel):
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


@pytest.mark.parametrize("family", FAMILIES)
def test_rows_that_share_their_beginning_get_the_logits_of_the_rows_alone(family, kernel):
    model, (before, question, *choices) = create_model(family), rows_of((4, 5, 3, 1, 6))
    # the second choice has no token of its own, as it is only predicted; the third one is the first branch again
    rows = [question, *(torch.cat([question, choice], 1) for choice in choices)]
    alone = [model(input_ids=row, use_cache=False).logits[0] for row in (before, *rows)]
    expected = torch.cat([alone[0], alone[1], *(logits[5:] for logits in alone[2:])])
    positions = [*range(4), *range(5), *(5 + index for choice in choices for index in range(choice.shape[1]))]
    with row_attention.row_attention(model):
        ids = torch.cat([before, question, *choices], 1)
        line = model(input_ids=ids, position_ids=torch.tensor([positions]), use_cache=False).logits[0]
    torch.testing.assert_close(line, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("positions", "spans"),
    [
        ([0, 1, 2, 0, 1, 0], [(0, 3, 0, 0), (3, 5, 3, 3), (5, 6, 5, 5)]),
        ([0], [(0, 1, 0, 0)]),
        ([3, 4, 0, 1], [(0, 2, 0, 0), (2, 4, 2, 2)]),
        ([0, 0, 1, 2, 3, 2, 2, 3, 0], [(0, 1, 0, 0), (1, 5, 1, 1), (5, 6, 1, 3), (6, 8, 1, 3), (8, 9, 8, 8)]),
    ],
)
def test_a_row_starts_at_position_zero_and_a_branch_at_any_other_that_is_not_the_next(positions, spans):
    assert row_attention.find_spans(torch.tensor(positions)) == [row_attention.LineSpan(*span) for span in spans]


def test_the_rows_of_a_batch_are_found_once_for_all_layers(monkeypatch):
    model, rows = create_model("Llama", num_hidden_layers=3, num_key_value_heads=2), rows_of(LENGTHS)
    calls, find_spans = [], row_attention.find_spans

    def counting_find_spans(positions):
        calls.append(len(positions))
        return find_spans(positions)

    monkeypatch.setattr(row_attention, "find_spans", counting_find_spans)
    ids, positions = torch.cat(rows, 1), torch.cat([torch.arange(length) for length in LENGTHS])[None]
    with row_attention.row_attention(model):
        first = model(input_ids=ids, position_ids=positions, use_cache=False).logits
        assert calls == [15]
        positions[0, 5:] += 5  # in place: the first two rows are one now, then a branch
        changed = model(input_ids=ids, position_ids=positions, use_cache=False).logits
        fresh = model(input_ids=ids, position_ids=positions.clone(), use_cache=False).logits
        with torch.inference_mode():
            model(input_ids=ids, position_ids=positions.clone(), use_cache=False)
    assert calls == [15] * 6  # a tensor of the inference mode has no version, so each layer finds its rows
    assert torch.equal(changed, fresh)
    assert not torch.allclose(first[:, 5:], changed[:, 5:], atol=1e-3)


def test_rows_are_padded_to_at_most_twice_their_length():
    lengths = [7, 1, 16, 8, 2, 9, 3, 1]
    positions = torch.cat([torch.arange(length) for length in lengths])[None]
    groups, order = row_attention.LineRows(positions).padded_groups(torch.device("cpu"))
    assert [group.shape for group in groups] == [(3, 16), (1, 7), (2, 3), (2, 1)]
    tokens = torch.cat([group.token_of_slot[group.slot_of_token] for group in groups])
    assert torch.equal(tokens[order], torch.arange(sum(lengths)))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.bfloat16, 3e-2)])
def test_rows_on_a_line_get_the_logits_of_the_rows_alone_on_cuda(dtype, tolerance):
    model, rows = create_model("Llama", num_key_value_heads=2).to("cuda", dtype), rows_of(LENGTHS)
    assert row_attention.supports_row_attention(model, longest_row=9)
    positions = torch.cat([torch.arange(length) for length in LENGTHS])[None].cuda()
    alone = torch.cat([model(input_ids=row.cuda(), use_cache=False).logits[0] for row in rows])
    with row_attention.row_attention(model):
        line = model(input_ids=torch.cat(rows, 1).cuda(), position_ids=positions, use_cache=False).logits[0]
    torch.testing.assert_close(line, alone, rtol=tolerance, atol=tolerance)
