"""Likelihoods against the plain way: every logit of one unpadded row."""

from __future__ import annotations

import math

import pytest
import torch

from harness.evaluation.likelihood import response_nll
from harness.types import TokenizedExample


def rows(vocabulary, lengths=(5, 17, 9, 30), seed=0):
    draw = torch.Generator().manual_seed(seed)
    made = []
    for number, length in enumerate(lengths):
        ids = torch.randint(5, vocabulary, (length,), generator=draw).tolist()
        labels = [-100 if position < length // 2 or position % 4 == 3 else ids[position] for position in range(length)]
        made.append(TokenizedExample(str(number), "s", tuple(ids), tuple(labels)))
    return made


def plain(model, row):
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([row.input_ids])).logits[0].double()
    chances = logits.log_softmax(-1)
    return -sum(
        chances[position - 1, label].item() for position, label in enumerate(row.labels) if label != -100 and position
    )


def llama(tokenizer, tied):
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(3)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=tied,
    )
    return LlamaForCausalLM(config).eval()


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


@pytest.mark.parametrize("kind", MODELS)
def test_a_padded_batch_gives_the_likelihood_of_each_row_alone(tokenizer, kind):
    model = MODELS[kind](tokenizer)
    given = rows(len(tokenizer))
    expected = [plain(model, row) for row in given]
    assert response_nll(model, given, tokenizer.pad_token_id) == pytest.approx(expected, abs=1e-5)
    assert [response_nll(model, [row], tokenizer.pad_token_id)[0] for row in given] == pytest.approx(expected, abs=1e-5)


def test_the_padding_token_does_not_matter(tokenizer, tiny_model):
    given = rows(len(tokenizer))
    assert response_nll(tiny_model, given, 0) == pytest.approx(response_nll(tiny_model, given, 77), abs=1e-6)


def test_a_uniform_model_has_the_vocabulary_as_its_perplexity(tokenizer, tiny_model):
    with torch.no_grad():
        tiny_model.get_output_embeddings().weight.zero_()
    row = rows(len(tokenizer), lengths=(20,))[0]
    (nll,) = response_nll(tiny_model, [row], 0)
    assert math.exp(nll / row.loss_tokens) == pytest.approx(len(tokenizer), rel=1e-6)
