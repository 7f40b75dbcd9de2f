"""Likelihoods, compared with all logits of one unpadded row."""

from __future__ import annotations

import math

import pytest
import torch

from harness.evaluation.likelihood import response_nll
from harness.evaluation.padding_probe import probe_batch_support
from harness.evaluation.row_batch import build_line_batch, build_padded_batch
from harness.testing.tiny_model import build_tiny_model
from harness.types import TokenizedExample


def rows(vocabulary, lengths=(5, 17, 9, 30), seed=0):
    draw = torch.Generator().manual_seed(seed)
    token_rows = []
    for number, length in enumerate(lengths):
        ids = torch.randint(5, vocabulary, (length,), generator=draw).tolist()
        labels = [-100 if position < length // 2 or position % 4 == 3 else ids[position] for position in range(length)]
        token_rows.append(TokenizedExample(str(number), "s", tuple(ids), tuple(labels)))
    return token_rows


def unbatched_nll(model, row):
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([row.input_ids])).logits[0].double()
    chances = logits.log_softmax(-1)
    return -sum(
        chances[position - 1, label].item() for position, label in enumerate(row.labels) if label != -100 and position
    )


def llama(tokenizer, tied):
    return build_tiny_model(tokenizer, tie_word_embeddings=tied).eval()


def gemma(tokenizer):
    from transformers import Gemma2Config, Gemma2ForCausalLM

    torch.manual_seed(3)
    config = Gemma2Config(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        final_logit_softcapping=0.05,
        attn_implementation="eager",
    )
    return Gemma2ForCausalLM(config).eval()


def gpt2(tokenizer):
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(3)
    return GPT2LMHeadModel(GPT2Config(vocab_size=len(tokenizer), n_positions=64, n_embd=32, n_layer=2, n_head=4)).eval()


def adapted(tokenizer):
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=4, target_modules=["q_proj", "down_proj", "lm_head"], init_lora_weights=False)
    return get_peft_model(llama(tokenizer, tied=False), config).eval()


MODELS = {
    "tied": lambda tokenizer: llama(tokenizer, tied=True),
    "untied": lambda tokenizer: llama(tokenizer, tied=False),
    "capped": gemma,
    "learned positions": gpt2,
    "adapter on the head": adapted,
}


def nll_of(model, rows, pad_id=0):
    return response_nll(model, build_padded_batch([(row,) for row in rows], pad_id))


@pytest.mark.parametrize("kind", MODELS)
def test_padded_batch_equals_single_rows(tokenizer, kind):
    model = MODELS[kind](tokenizer)
    given = rows(len(tokenizer))
    expected = [unbatched_nll(model, row) for row in given]
    assert nll_of(model, given, tokenizer.pad_token_id) == pytest.approx(expected, abs=1e-5)
    assert [nll_of(model, [row])[0] for row in given] == pytest.approx(expected, abs=1e-5)


def test_padding_token_does_not_matter(tokenizer, tiny_model):
    given = rows(len(tokenizer))
    assert nll_of(tiny_model, given, 0) == pytest.approx(nll_of(tiny_model, given, 77), abs=1e-6)


def rows_after(question, choices):
    """Return rows that begin alike, of which everything after the question is trained."""
    return tuple(
        TokenizedExample("", "", (*question, *choice), (*[-100] * len(question), *choice)) for choice in choices
    )


@pytest.mark.parametrize("kind", [kind for kind in MODELS if kind != "capped"])
def test_line_of_rows_and_choices_equals_single_rows(tokenizer, kind):
    model = MODELS[kind](tokenizer)
    assert probe_batch_support(model, tokenizer).lines
    single = rows(len(tokenizer))
    # one choice is a single token, two begin alike, and one is the beginning of another
    question = rows_after((5, 6, 7, 8), [(9,), (10, 11, 12), (10, 11), (10, 13, 14, 15)])
    unlike = rows_after((), [(20, 21), (22, 23)])  # truncated at the left to different lengths, for example
    groups = [(single[0],), question, (single[1],), unlike, (single[2],)]
    expected = [unbatched_nll(model, row) for group in groups for row in group]
    assert response_nll(model, build_line_batch(groups)) == pytest.approx(expected, rel=1e-5, abs=1e-6)
    assert model.config._attn_implementation == "sdpa"


def test_a_line_has_the_beginning_of_a_group_once():
    batch = build_line_batch([rows_after((5, 6), [(9, 10, 11), (9, 12), (13,)])])
    assert batch.inputs["input_ids"].tolist() == [[5, 6, 9, 10, 9]]
    assert batch.inputs["position_ids"].tolist() == [[0, 1, 2, 3, 2]]
    assert (batch.targets.tolist(), batch.target_counts) == ([9, 10, 11, 9, 12, 13], [3, 2, 1])
    assert batch.logit_rows.tolist() == [0, 1, 2, 0, 3, 0]


def test_uniform_model_has_vocabulary_size_as_perplexity(tokenizer, tiny_model):
    with torch.no_grad():
        tiny_model.get_output_embeddings().weight.zero_()
    row = rows(len(tokenizer), lengths=(20,))[0]
    (nll,) = nll_of(tiny_model, [row])
    assert math.exp(nll / row.loss_tokens) == pytest.approx(len(tokenizer), rel=1e-6)
