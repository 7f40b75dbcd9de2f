"""Plain text by rolling windows."""

from __future__ import annotations

import math

import pytest
import torch

from harness.errors import HarnessError
from harness.evaluation.rolling_likelihood import rolling_windows
from harness.types import Example, Message

TEXTS = ["A short one.", "天气很好，我们去公园玩。" * 3, "One with </s> spelt out", "x"]


def text(content, number=0):
    return Example(f"text-{number}", (Message("text", content),), f"wiki:{number}")


@pytest.fixture
def go(kit, tokenizer, metric):
    def run(model, rows, max_length=512, size=4):
        suite = kit.suite(batch_size=size)
        return kit.evaluate(model, suite, rows, {"bpb": metric("bits_per_byte")}, max_length=max_length)

    return run


def plain(model, before, tokens):
    with torch.no_grad():
        chances = model(input_ids=torch.tensor([[*before, *tokens][:-1]])).logits[0].double().log_softmax(-1)
    return -sum(chances[len(before) + place - 1, token].item() for place, token in enumerate(tokens))


@pytest.mark.parametrize("size", [1, 4])
def test_a_text_is_foretold_from_its_first_token_behind_the_begin_of_sequence(go, tokenizer, tiny_model, size):
    result = go(tiny_model.eval(), [text(one, number) for number, one in enumerate(TEXTS)], size=size)
    for item, content in zip(result.items, TEXTS, strict=True):
        tokens = tokenizer(content, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        assert len(tokens) == len(content.encode()) == item.text_tokens  # `</s>` is four letters of text
        assert item.text_nll == pytest.approx(plain(tiny_model, [tokenizer.bos_token_id], tokens), abs=1e-4)
        assert (item.prompt, item.reference) == ("", content)
    bits = sum(item.text_nll for item in result.items) / sum(len(one.encode()) for one in TEXTS) / math.log(2)
    assert result.scores[0].value == pytest.approx(bits)
    assert result.scores[0].method == "delta"


def test_a_model_that_knows_nothing_needs_the_bits_of_its_vocabulary(go, kit, tokenizer):
    result = go(kit.echo(), [text(TEXTS[0])])
    assert result.scores[0].value == pytest.approx(math.log2(len(tokenizer)), rel=1e-6)


def test_windows_foretell_each_token_once_with_a_full_context_at_the_end():
    ids = list(range(100, 110))
    rows = list(rolling_windows(ids, 1, 4))
    assert [row.input_ids for row in rows] == [
        (1, 100, 101, 102, 103),
        (103, 104, 105, 106, 107),
        (105, 106, 107, 108, 109),
    ]
    assert [token for row in rows for token in row.labels if token != -100] == ids
    assert rows[2].labels == (-100, -100, -100, 108, 109)


def test_a_text_longer_than_the_model_rolls(go, tokenizer, tiny_model):
    content = "abcdefghij" * 5
    (item,) = go(tiny_model.eval(), [text(content)], max_length=16).items
    tokens = tokenizer(content, add_special_tokens=False)["input_ids"]
    expected = plain(tiny_model, [tokenizer.bos_token_id], tokens[:16])
    expected += plain(tiny_model, tokens[15:16], tokens[16:32]) + plain(tiny_model, tokens[31:32], tokens[32:48])
    expected += plain(tiny_model, tokens[33:48], tokens[48:])
    assert item.text_nll == pytest.approx(expected, abs=1e-3)
    assert item.text_tokens == 50


def test_a_model_is_never_fed_more_than_it_knows(go, tiny_model):
    lengths = []
    tiny_model.register_forward_pre_hook(
        lambda module, args, given: lengths.append(given["input_ids"].shape[1]), with_kwargs=True
    )
    go(tiny_model.eval(), [text("y" * 1200)], max_length=4096)  # it knows 512 positions
    assert max(lengths) == 512


def test_a_conversation_is_no_text(go, kit, tiny_model):
    with pytest.raises(HarnessError, match=r"test:1: is a conversation, and a metric of its suite reads plain text"):
        go(tiny_model, [kit.example("q", "r")])
