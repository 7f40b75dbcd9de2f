"""Phi-3's format, to the letter; token for token in `test_parity`."""

from __future__ import annotations

import dataclasses

import pytest

from harness import HarnessError, Message


@pytest.fixture
def phi(make):
    return make("phi")


@pytest.fixture
def tokenizer(family):
    return family("phi")


def test_the_end_of_sequence_follows_the_last_response_and_is_trained(phi, tokenizer, multi, marked):
    assert marked(phi.render((Message("system", "Be brief."), *multi), tokenizer)) == (
        "<|system|>\nBe brief.<|end|>\n<|user|>\nName a river.<|end|>\n<|assistant|>\n⟦The Elbe.<|end|>⟧\n"
        "<|user|>\n再说一条河。<|end|>\n<|assistant|>\n⟦长江 🙂<|end|>\n<|endoftext|>⟧"
    )


def test_the_end_of_sequence_is_not_trained_if_the_last_response_is_not(phi, tokenizer, multi, marked):
    messages = (*multi[:3], dataclasses.replace(multi[3], train=False))
    text = marked(phi.render(messages, tokenizer))
    assert text.endswith("<|assistant|>\n长江 🙂<|end|>\n<|endoftext|>")
    assert text.count("⟦") == 1


def test_generation_prompt_stop_strings_and_refused_conversations(phi, tokenizer, family, single, weather, marked):
    opened = marked(phi.render(single[:1], tokenizer, add_generation_prompt=True))
    assert opened == "<|user|>\nName a river.<|end|>\n<|assistant|>\n"
    assert phi.stop_strings(tokenizer) == ("<|end|>", "<|endoftext|>")
    with pytest.raises(HarnessError, match="does not support tools"):
        phi.render(single, tokenizer, tools=[weather])
    with pytest.raises(HarnessError, match=r"no token <\|system\|>"):
        phi.render(single, family("llama2"))
