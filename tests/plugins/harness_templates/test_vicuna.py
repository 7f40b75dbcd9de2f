"""Vicuna's format, compared with its example prompt (github.com/lm-sys/FastChat, docs/vicuna_weights_version.md)."""

from __future__ import annotations

import dataclasses

import pytest

from harness import HarnessError, Message
from harness.data.tokenization.prompts import encode_prompt
from harness.data.tokenization.tokenize import tokenize_example
from harness.testing.full_mask_check import verify_mask

PREFACE = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
EXAMPLE = (Message("user", "Hello!"), Message("assistant", "Hello!"))
EXAMPLE += (Message("user", "How are you?"), Message("assistant", "I am good."))


@pytest.fixture
def vicuna(make):
    return make("vicuna")


@pytest.fixture
def tokenizer(family):
    return family("llama2")


@pytest.mark.parametrize(("system", "turns"), [(None, 1), (None, 2), ("Be brief.", 1), ("Be brief.", 2)])
def test_parity_with_the_published_example_token_for_token(system, turns, vicuna, tokenizer, example):
    messages = (*([Message("system", system)] if system else []), *EXAMPLE[: 2 * turns])
    full_text = f"{system or PREFACE} USER: Hello! ASSISTANT: Hello!</s>"
    full_text += "USER: How are you? ASSISTANT: I am good.</s>" if turns == 2 else ""
    row = tokenize_example(example(messages), "s", vicuna, tokenizer, 4096)
    assert list(row.input_ids) == tokenizer("<s>" + full_text, add_special_tokens=False).input_ids
    prompt = encode_prompt(example(messages), vicuna, tokenizer, 4096)
    up_to_response = full_text[: full_text.rindex("ASSISTANT:") + len("ASSISTANT:")]
    assert prompt == tokenizer("<s>" + up_to_response, add_special_tokens=False).input_ids
    verify_mask(example(messages), row, vicuna, tokenizer)


def test_the_space_belongs_to_the_answer(vicuna, tokenizer, marked):
    assert marked(vicuna.render(EXAMPLE, tokenizer)) == (
        f"{PREFACE} USER: Hello! ASSISTANT:⟦ Hello!</s>⟧USER: How are you? ASSISTANT:⟦ I am good.</s>⟧"
    )
    first = dataclasses.replace(EXAMPLE[1], train=False)
    text = marked(vicuna.render((EXAMPLE[0], first, *EXAMPLE[2:]), tokenizer))
    assert text.endswith("ASSISTANT: Hello!</s>USER: How are you? ASSISTANT:⟦ I am good.</s>⟧")


def test_null_writes_no_preface(make, tokenizer, marked):
    assert (
        marked(make("vicuna", system=None).render(EXAMPLE[:1], tokenizer, add_generation_prompt=True))
        == "USER: Hello! ASSISTANT:"
    )


def test_stop_strings_and_refused_conversations(vicuna, tokenizer, single, weather):
    assert vicuna.stop_strings(tokenizer) == ("</s>",)
    with pytest.raises(HarnessError, match="does not support tools"):
        vicuna.render(single, tokenizer, tools=[weather])
    with pytest.raises(HarnessError, match="instead of"):
        vicuna.render((single[0], *single), tokenizer)
