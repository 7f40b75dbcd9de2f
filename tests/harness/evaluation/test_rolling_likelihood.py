"""Plain text by rolling windows."""

from __future__ import annotations

import math

import pytest
import torch

from harness.errors import HarnessError
from harness.evaluation.rolling_likelihood import rolling_windows
from harness.types import Example, Message

TEXTS = ["A short one.", "天气很好，我们去公园玩。" * 3, "One with </s> spelt out", "x"]


def text_row(content, index=0):
    return Example(f"text-{index}", (Message("text", content),), f"wiki:{index}")


@pytest.fixture
def evaluate_text(kit, tokenizer, metric):
    def run(model, rows, max_length=512, size=4):
        suite = kit.suite(batch_size=size)
        return kit.evaluate(model, suite, rows, {"bpb": metric("bits_per_byte")}, max_length=max_length)

    return run


def unbatched_nll(model, prefix, tokens):
    with torch.no_grad():
        log_probs = model(input_ids=torch.tensor([[*prefix, *tokens][:-1]])).logits[0].double().log_softmax(-1)
    return -sum(log_probs[len(prefix) + position - 1, token].item() for position, token in enumerate(tokens))


@pytest.mark.parametrize("size", [1, 4])
def test_text_is_predicted_from_its_first_token(evaluate_text, tokenizer, tiny_model, size):
    result = evaluate_text(
        tiny_model.eval(), [text_row(content, index) for index, content in enumerate(TEXTS)], size=size
    )
    for item, content in zip(result.items, TEXTS, strict=True):
        tokens = tokenizer(content, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        assert len(tokens) == len(content.encode()) == item.text_tokens  # `</s>` is four letters of text
        assert item.text_nll == pytest.approx(unbatched_nll(tiny_model, [tokenizer.bos_token_id], tokens), abs=1e-4)
        assert (item.prompt, item.reference) == ("", content)
    bits = sum(item.text_nll for item in result.items) / sum(len(one.encode()) for one in TEXTS) / math.log(2)
    assert result.scores[0].value == pytest.approx(bits)
    assert result.scores[0].method == "jackknife"


def test_uniform_model_needs_the_bits_of_its_vocabulary(evaluate_text, kit, tokenizer):
    result = evaluate_text(kit.echo(), [text_row(TEXTS[0])])
    assert result.scores[0].value == pytest.approx(math.log2(len(tokenizer)), rel=1e-6)


def test_windows_predict_each_token_once():
    ids = list(range(100, 110))
    rows = list(rolling_windows(ids, 1, 4))
    assert [row.input_ids for row in rows] == [
        (1, 100, 101, 102, 103),
        (103, 104, 105, 106, 107),
        (105, 106, 107, 108, 109),
    ]
    assert [token for row in rows for token in row.labels if token != -100] == ids
    assert rows[2].labels == (-100, -100, -100, 108, 109)


def test_long_text_is_measured_in_windows(evaluate_text, tokenizer, tiny_model):
    content = "abcdefghij" * 5
    (item,) = evaluate_text(tiny_model.eval(), [text_row(content)], max_length=16).items
    tokens = tokenizer(content, add_special_tokens=False)["input_ids"]
    expected = unbatched_nll(tiny_model, [tokenizer.bos_token_id], tokens[:16])
    expected += unbatched_nll(tiny_model, tokens[15:16], tokens[16:32]) + unbatched_nll(
        tiny_model, tokens[31:32], tokens[32:48]
    )
    expected += unbatched_nll(tiny_model, tokens[33:48], tokens[48:])
    assert item.text_nll == pytest.approx(expected, abs=1e-3)
    assert item.text_tokens == 50


def test_window_fits_into_the_model(evaluate_text, tiny_model):
    lengths = []
    tiny_model.register_forward_pre_hook(
        lambda module, args, given: lengths.append(given["input_ids"].shape[1]), with_kwargs=True
    )
    evaluate_text(tiny_model.eval(), [text_row("y" * 1200)], max_length=4096)  # it knows 512 positions
    assert max(lengths) == 512


def test_conversation_is_rejected(evaluate_text, kit, tiny_model):
    with pytest.raises(HarnessError, match=r"test:1: is a conversation, but a metric of its suite needs plain text"):
        evaluate_text(tiny_model, [kit.example("q", "r")])
