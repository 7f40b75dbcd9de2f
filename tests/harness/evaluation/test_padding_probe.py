"""The probe finds models whose answers depend on padding, or that have no cache, and their answers are right then."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from harness.errors import HarnessError
from harness.evaluation import padding_probe
from harness.evaluation.batch_support import FULL_SUPPORT, BatchSupport
from harness.evaluation.padding_probe import probe_batch_support

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
GPT_SIZES = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256}
MINIMAX = {**SIZES, "num_key_value_heads": 2, "head_dim": 8, "num_local_experts": 2, "block_size": 16}
RWKV = {"hidden_size": 32, "num_hidden_layers": 2, "attention_hidden_size": 32, "context_length": 256}
RECURRENT_GEMMA = {**SIZES, "num_hidden_layers": 3, "lru_width": 32, "num_key_value_heads": 1, "head_dim": 8}
WITH_LINES = BatchSupport(lines=True)
MODELS = {
    "llama": ({**SIZES, "num_key_value_heads": 2}, WITH_LINES),
    "gpt2": (GPT_SIZES, WITH_LINES),
    "gemma2": ({**SIZES, "num_key_value_heads": 2, "head_dim": 8, "sliding_window": 4}, FULL_SUPPORT),
    "bloom": ({"hidden_size": 32, "n_layer": 2, "n_head": 4}, FULL_SUPPORT),
    "minimax": (MINIMAX, BatchSupport(left_padding=False)),
    "roberta": ({**SIZES, "is_decoder": True, "pad_token_id": 0}, BatchSupport(left_padding=False)),
    "mamba": ({"hidden_size": 32, "num_hidden_layers": 2}, BatchSupport(cache=False)),
    "rwkv": (RWKV, BatchSupport(cache=False, left_padding=False)),
    "recurrent_gemma": (RECURRENT_GEMMA, BatchSupport(cache=False)),
    "openai-gpt": (GPT_SIZES, BatchSupport(cache=False)),
}


def build_model(model_type, tokenizer, **settings):
    """Return a random model with large weights, so that padding that is not masked changes its answers."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        model_type, vocab_size=len(tokenizer), bos_token_id=1, eos_token_id=2, **{"pad_token_id": 0, **settings}
    )
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() > 1:
                weight.mul_(4)
    return model


@pytest.mark.slow
@pytest.mark.parametrize("model_type", MODELS)
def test_answers_of_a_batch_equal_complete_forward_passes_of_each_prompt(model_type, tokenizer, kit):
    settings, expected = MODELS[model_type]
    model = build_model(model_type, tokenizer, **settings)
    model.train()
    support = probe_batch_support(model, tokenizer)
    assert support == expected
    assert model.training

    rows = [kit.example(text, "r") for text in ("yes", "a much longer question", "no, and so on and on", "why?")]
    suite = kit.suite(batch_size=4, max_new_tokens=6)
    result = kit.evaluate(model, suite, rows, {"same": kit.same}, batch_support=support)
    model.eval()
    for row, item in zip(rows, result.items, strict=True):
        text = f"<|im_start|>user\n{row.messages[0].content}<|im_end|>\n<|im_start|>assistant\n"
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        answer = []
        while len(answer) < 6 and not {2, 4} & set(answer):
            with torch.no_grad():
                logits = model(input_ids=torch.tensor([ids + answer]), use_cache=False).logits
            answer.append(int(logits[0, -1].argmax()))
        kept = answer[:-1] if answer[-1] in (2, 4) else answer
        assert item.answer == tokenizer.decode(kept, skip_special_tokens=True)


def test_likelihoods_of_a_model_that_right_padding_changes_are_computed_one_at_a_time(tokenizer, kit):
    model = build_model("llama", tokenizer, **SIZES, num_key_value_heads=2)
    embed = model.model.embed_tokens
    embed.register_forward_hook(lambda module, ids, hidden: hidden + hidden.mean(dim=1, keepdim=True))
    support = probe_batch_support(model, tokenizer)
    assert not support.right_padding
    rows = [kit.example("question", response) for response in ("a", "a much longer response", "bb")]
    metrics = {"nll": kit.likelihood}

    def likelihoods(rows, size):
        suite = kit.suite(batch_size=size)
        result = kit.evaluate(model, suite, rows, metrics, batch_support=support)
        return [item.nll for item in result.items]

    assert likelihoods(rows, 3) == pytest.approx([likelihoods([row], 1)[0] for row in rows], rel=1e-6)


def test_a_model_that_cannot_compute_a_row_is_an_error_of_one_line(tokenizer, tiny_model):
    def fail(*arguments, **options):
        raise ValueError("needs an image\nand more")

    tiny_model.forward = fail
    with pytest.raises(HarnessError, match=r"model\.path: LlamaForCausalLM cannot compute .*: needs an image;"):
        probe_batch_support(tiny_model, tokenizer)


def test_a_model_that_fails_on_a_line_gets_padded_batches(tokenizer, monkeypatch):
    def fail(model):
        raise ValueError("needs another attention")

    monkeypatch.setattr(padding_probe, "row_attention", fail)
    model = build_model("llama", tokenizer, **SIZES, num_key_value_heads=2)
    assert probe_batch_support(model, tokenizer) == FULL_SUPPORT


@pytest.mark.parametrize("positions", [1, 4, 16, 40])
def test_the_probe_stays_within_the_positions_of_a_small_model(positions, tokenizer):
    model = build_model("gpt2", tokenizer, **{**GPT_SIZES, "n_positions": positions})
    assert probe_batch_support(model, tokenizer) == (WITH_LINES if positions >= 16 else FULL_SUPPORT)


def test_warnings_name_what_is_done_instead():
    assert list(FULL_SUPPORT.warnings(generates=True)) == []
    warnings = list(BatchSupport(cache=False, left_padding=False, right_padding=False).warnings(generates=True))
    assert [text.split(":")[0] for text in warnings] == [
        "padding changes the answers of this model",
        "padding changes the likelihoods of this model",
        "this model has no cache to generate answers with",
    ]
    assert "batch size 1" in warnings[0]
    assert list(BatchSupport(cache=False, left_padding=False).warnings(generates=False)) == []
