"""Multiple choice by likelihood, against the plain way of each choice by itself."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from harness.errors import HarnessError
from harness.types import Example, Message

QUESTIONS = [
    ("Where is it?", ("here", "over there", "天上"), 1),
    ("Who?", ("a", "bb"), 0),
    ("法国的首都是", ("巴黎", "里昂", "x", "yy"), 2),
]


def question(text, choices, gold):
    messages = (Message("user", text), Message("assistant", choices[gold]))
    return Example(f"id-{text}", messages, "quiz:1", choices=choices)


@pytest.fixture
def go(kit, tokenizer, metric):
    def run(model, rows, **settings):
        suite = kit.suite(**settings)
        return kit.evaluate(model, suite, rows, {"mc": metric("multiple_choice")})

    return run


@pytest.fixture
def lively(tiny_model):
    with torch.no_grad():
        for parameter in tiny_model.parameters():
            parameter.mul_(6.0)
    return tiny_model.eval()


def plain(model, before, choice):
    """Summed log-likelihood of the ids `choice` after the ids `before`, one token at a time."""
    with torch.no_grad():
        chances = model(input_ids=torch.tensor([[*before, *choice]])).logits[0].double().log_softmax(-1)
    return sum(chances[len(before) + place - 1, token].item() for place, token in enumerate(choice))


def ids(tokenizer, text):
    return tokenizer(text, add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize("size", [1, 3, 8])
@pytest.mark.parametrize("template", [True, False])
def test_the_likelihood_of_a_choice_is_that_of_its_own_tokens(go, tokenizer, lively, size, template):
    result = go(lively, [question(*one) for one in QUESTIONS], batch_size=size, plain=not template)
    for item, (text, choices, gold) in zip(result.items, QUESTIONS, strict=True):
        before = f"<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n" if template else text
        between = "" if template else " "
        expected = [
            plain(lively, ids(tokenizer, before), ids(tokenizer, between + choice)) for choice in choices
        ]  # the end of the turn is no part of it
        assert item.choice_lls == pytest.approx(expected, abs=1e-4)
        assert (item.choices, item.gold, item.joined, item.row_cut) == (choices, gold, 0, False)
    assert [score.name for score in result.scores] == ["acc", "acc_norm", "acc_bytes"]
    assert {score.method for score in result.scores} == {"wilson"}
    right = [max(range(len(i.choices)), key=lambda c, i=i: i.choice_lls[c]) == i.gold for i in result.items]
    assert result.scores[0].value == pytest.approx(sum(right) / 3)


def test_the_delimiter_stands_before_the_choice(go, tokenizer, lively):
    rows = [question(*QUESTIONS[2])]
    (item,) = go(lively, rows, plain=True, delimiter="").items
    expected = [plain(lively, ids(tokenizer, "法国的首都是"), ids(tokenizer, choice)) for choice in QUESTIONS[2][1]]
    assert item.choice_lls == pytest.approx(expected, abs=1e-4)


def test_spaces_at_the_questions_end_go_to_the_choice(go, tokenizer, lively):
    (item,) = go(lively, [question("Who?  ", ("a", "bb"), 0)], plain=True, delimiter="").items
    expected = [plain(lively, ids(tokenizer, "Who?"), ids(tokenizer, "  " + choice)) for choice in ("a", "bb")]
    assert item.choice_lls == pytest.approx(expected, abs=1e-4)


@pytest.fixture
def joining():
    """A tokenizer that makes one token of `Answer` and of `s`-words: what is asked for can lose its first letters."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    special = ["<pad>", "<s>", "</s>", "<|im_start|>", "<|im_end|>"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = ["An", "Ans", "we", "wer", "Answer"]
    vocabulary = {token: index for index, token in enumerate([*special, *alphabet, *words])}
    merges = [("A", "n"), ("An", "s"), ("w", "e"), ("we", "r"), ("Ans", "wer")]
    core = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<s>", eos_token="</s>", pad_token="<pad>")


def test_choices_that_share_a_token_with_the_question_are_counted(kit, joining, metric):
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(joining), hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2
        )
    ).eval()
    # "Ans" + "wer" is one token, so "wer" would be left with none; "Ans" + "xx" divides well.
    row = question("Ans", ("wer", "xx"), 0)
    suite = kit.suite(plain=True, delimiter="")
    result = kit.evaluate(model, suite, [row], {"mc": metric("multiple_choice")}, tokenizer=joining, max_length=64)
    (item,) = result.items
    assert item.joined == 1
    assert item.choice_lls[0] == pytest.approx(plain(model, ids(joining, "Ans"), ids(joining, "wer")), abs=1e-4)
    assert result.scores[0].counts == {"row_cut": 0, "boundary": 1}


def test_a_question_too_long_loses_its_beginning_and_is_counted(go, lively):
    rows = [question("q" * 300, ("here", "there"), 0), question(*QUESTIONS[1])]
    result = go(lively, rows, max_cut=0.4)
    assert [item.row_cut for item in result.items] == [True, False]
    assert result.scores[0].counts["row_cut"] == 1
    (breach,) = result.violations
    assert str(breach) == "1 of 2 items are cut (50.0%, 40.0% are allowed)"


def test_rows_without_choices_are_named(go, kit, lively):
    with pytest.raises(HarnessError, match=r"test:1: is no multiple-choice question"):
        go(lively, [kit.example("q", "r")])
    row = question(*QUESTIONS[0])
    with pytest.raises(HarnessError, match="none of its choices"):
        go(lively, [replace(row, choices=("x", "y"))])


def test_a_conversation_has_no_plain_prompt(go, lively):
    turns = (Message("user", "q"), Message("assistant", "a"), Message("user", "r"), Message("assistant", "x"))
    with pytest.raises(HarnessError, match=r'quiz:2: does not have exactly one question.*remove "plain"'):
        go(lively, [Example("1", turns, "quiz:2", choices=("x", "y"))], plain=True)
