"""Multiple choice by likelihood, compared with each choice measured separately."""

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
def evaluate_choices(kit, tokenizer, metric):
    def run(model, rows, **settings):
        suite = kit.suite(**settings)
        return kit.evaluate(model, suite, rows, {"mc": metric("multiple_choice")})

    return run


@pytest.fixture
def sharp_model(tiny_model):
    with torch.no_grad():
        for parameter in tiny_model.parameters():
            parameter.mul_(6.0)
    return tiny_model.eval()


def expected_ll(model, prompt_ids, choice_ids):
    """Return the log-likelihood of `choice_ids` after `prompt_ids`, summed over single tokens."""
    with torch.no_grad():
        log_probs = model(input_ids=torch.tensor([[*prompt_ids, *choice_ids]])).logits[0].double().log_softmax(-1)
    return sum(log_probs[len(prompt_ids) + i - 1, token].item() for i, token in enumerate(choice_ids))


def ids(tokenizer, text):
    return tokenizer(text, add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize("size", [1, 3, 8])
@pytest.mark.parametrize("template", [True, False])
def test_choice_likelihood_covers_its_own_tokens(evaluate_choices, tokenizer, sharp_model, size, template):
    result = evaluate_choices(
        sharp_model, [question(*entry) for entry in QUESTIONS], batch_size=size, plain=not template
    )
    for item, (text, choices, gold) in zip(result.items, QUESTIONS, strict=True):
        before = f"<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n" if template else text
        between = "" if template else " "
        expected = [
            expected_ll(sharp_model, ids(tokenizer, before), ids(tokenizer, between + choice)) for choice in choices
        ]  # a choice does not include the end of the turn
        assert item.choice_lls == pytest.approx(expected, abs=1e-4)
        assert (item.choices, item.gold, item.joined, item.row_cut) == (choices, gold, 0, False)
    assert [score.name for score in result.scores] == ["acc", "acc_norm", "acc_bytes"]
    assert {score.method for score in result.scores} == {"wilson"}
    right = [max(range(len(i.choices)), key=lambda c, i=i: i.choice_lls[c]) == i.gold for i in result.items]
    assert result.scores[0].value == pytest.approx(sum(right) / 3)


def test_delimiter_precedes_the_choice(evaluate_choices, tokenizer, sharp_model):
    rows = [question(*QUESTIONS[2])]
    (item,) = evaluate_choices(sharp_model, rows, plain=True, delimiter="").items
    expected = [
        expected_ll(sharp_model, ids(tokenizer, "法国的首都是"), ids(tokenizer, choice)) for choice in QUESTIONS[2][1]
    ]
    assert item.choice_lls == pytest.approx(expected, abs=1e-4)


def test_trailing_spaces_of_the_question_belong_to_the_choice(evaluate_choices, tokenizer, sharp_model):
    (item,) = evaluate_choices(sharp_model, [question("Who?  ", ("a", "bb"), 0)], plain=True, delimiter="").items
    expected = [
        expected_ll(sharp_model, ids(tokenizer, "Who?"), ids(tokenizer, "  " + choice)) for choice in ("a", "bb")
    ]
    assert item.choice_lls == pytest.approx(expected, abs=1e-4)


@pytest.fixture
def merging_tokenizer():
    """Return a tokenizer that merges the end of a question and the beginning of a choice."""
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


def test_choices_merged_with_the_question_are_counted(kit, merging_tokenizer, metric):
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(merging_tokenizer),
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
        )
    ).eval()
    # "Ans" + "wer" is one token, so "wer" would be left with none; "Ans" + "xx" divides well.
    row = question("Ans", ("wer", "xx"), 0)
    suite = kit.suite(plain=True, delimiter="")
    result = kit.evaluate(
        model, suite, [row], {"mc": metric("multiple_choice")}, tokenizer=merging_tokenizer, max_length=64
    )
    (item,) = result.items
    assert item.joined == 1
    assert item.choice_lls[0] == pytest.approx(
        expected_ll(model, ids(merging_tokenizer, "Ans"), ids(merging_tokenizer, "wer")), abs=1e-4
    )
    assert result.scores[0].counts == {"row_cut": 0, "boundary": 1}


def test_long_question_loses_its_beginning_and_is_counted(evaluate_choices, sharp_model):
    rows = [question("q" * 300, ("here", "there"), 0), question(*QUESTIONS[1])]
    result = evaluate_choices(sharp_model, rows, max_cut=0.4)
    assert [item.row_cut for item in result.items] == [True, False]
    assert result.scores[0].counts["row_cut"] == 1
    (breach,) = result.violations
    assert str(breach) == "1 of 2 items are cut (50.0%, 40.0% are allowed)"


def test_rows_without_choices_are_rejected(evaluate_choices, kit, sharp_model):
    with pytest.raises(HarnessError, match=r"test:1: is not a multiple-choice question"):
        evaluate_choices(sharp_model, [kit.example("q", "r")])
    row = question(*QUESTIONS[0])
    with pytest.raises(HarnessError, match="not one of its choices"):
        evaluate_choices(sharp_model, [replace(row, choices=("x", "y"))])


def test_conversation_has_no_plain_prompt(evaluate_choices, sharp_model):
    turns = (Message("user", "q"), Message("assistant", "a"), Message("user", "r"), Message("assistant", "x"))
    with pytest.raises(HarnessError, match=r'quiz:2: does not have exactly one question.*remove "plain"'):
        evaluate_choices(sharp_model, [Example("1", turns, "quiz:2", choices=("x", "y"))], plain=True)
