"""Zephyr's format, compared with its chat template (huggingface.co/HuggingFaceH4/zephyr-7b-beta)."""

from __future__ import annotations

import pytest

from harness import HarnessError, Message
from harness.data.tokenization.prompts import encode_prompt
from harness.data.tokenization.tokenize import tokenize_example
from harness.testing.full_mask_check import verify_mask


@pytest.fixture
def zephyr(make):
    return make("zephyr")


@pytest.fixture
def tokenizer(family):
    return family("llama2")


@pytest.mark.parametrize("name", ["single", "multi", "system", "system_multi"])
def test_parity_with_the_published_description_token_for_token(name, zephyr, tokenizer, conversations, example):
    messages = conversations[name]
    text = "".join(f"<|{message.role}|>\n{message.content}</s>\n" for message in messages)
    row = tokenize_example(example(messages), "s", zephyr, tokenizer, 4096)
    # The description has no BOS; this tokenizer puts one first by itself.
    assert list(row.input_ids) == tokenizer("<s>" + text, add_special_tokens=False).input_ids
    prompt = encode_prompt(example(messages), zephyr, tokenizer, 4096)
    before = text[: text.rindex("<|assistant|>\n") + len("<|assistant|>\n")]
    assert "".join(span.text for span in zephyr.render(messages[:-1], tokenizer, add_generation_prompt=True)) == before
    assert prompt == list(row.input_ids[: len(prompt)])
    verify_mask(example(messages), row, zephyr, tokenizer)


def test_response_and_end_of_sequence_are_trained(zephyr, tokenizer, multi, marked):
    assert marked(zephyr.render(multi, tokenizer)) == (
        "<|user|>\nName a river.</s>\n<|assistant|>\n⟦The Elbe.</s>⟧\n"
        "<|user|>\n再说一条河。</s>\n<|assistant|>\n⟦长江 🙂</s>⟧\n"
    )


def test_the_option_system_may_be_empty(make, zephyr, tokenizer, single):
    empty = "".join(span.text for span in make("zephyr", system="").render(single, tokenizer))
    assert empty.startswith("<|system|>\n</s>\n<|user|>\n")
    with_system = (Message("system", "Be brief."), *single)
    assert make("zephyr", system="").render(with_system, tokenizer) == zephyr.render(with_system, tokenizer)


def test_stop_strings_and_refused_conversations(zephyr, tokenizer, single, weather):
    assert zephyr.stop_strings(tokenizer) == ("</s>",)
    with pytest.raises(HarnessError, match="does not support tools"):
        zephyr.render(single, tokenizer, tools=[weather])
