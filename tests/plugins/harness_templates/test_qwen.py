"""Qwen's format, to the letter; token for token in `test_parity`."""

from __future__ import annotations

import dataclasses

import pytest

from harness import HarnessError, Message, ToolCall

SYSTEM = "<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.<|im_end|>\n"


@pytest.fixture
def qwen(make):
    return make("qwen")


@pytest.fixture
def tokenizer(family):
    return family("qwen")


def test_a_conversation_without_a_system_message_gets_the_default(qwen, tokenizer, single, marked):
    turns = "<|im_start|>user\nName a river.<|im_end|>\n<|im_start|>assistant\n⟦The Elbe.<|im_end|>⟧\n"
    assert marked(qwen.render(single, tokenizer)) == SYSTEM + turns
    with_system = (Message("system", "Be brief."), *single)
    assert marked(qwen.render(with_system, tokenizer)) == "<|im_start|>system\nBe brief.<|im_end|>\n" + turns


def test_null_writes_chatml(make, tokenizer, conversations):
    for messages in conversations.values():
        assert make("qwen", system=None).render(messages, tokenizer) == make("chatml").render(messages, tokenizer)


def test_a_call_and_its_answer_have_the_published_text(qwen, tokenizer, calling, marked):
    assert marked(qwen.render(calling, tokenizer)) == SYSTEM + (
        "<|im_start|>user\nHow is the weather in Köln?<|im_end|>\n<|im_start|>assistant\n"
        '⟦<tool_call>\n{"name": "get_weather", "arguments": {"city": "Köln", "days": 2}}\n</tool_call><|im_end|>⟧\n'
        '<|im_start|>user\n<tool_response>\n{"sky": "grey"}\n</tool_response><|im_end|>\n'
        "<|im_start|>assistant\n⟦Grey.<|im_end|>⟧\n"
    )


def test_a_turn_may_have_text_and_several_calls_with_answers_in_one_turn(make, tokenizer, marked):
    calls = (ToolCall("f", {}), ToolCall("g", {"x": [1, None]}))
    messages = (
        Message("user", "q"),
        Message("assistant", "Wait.", tool_calls=calls, train=False),
        Message("tool", "1"),
        Message("tool", "2"),
        Message("assistant", "a"),
    )
    assert marked(make("qwen", system=None).render(messages, tokenizer)) == (
        "<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\nWait.\n"
        '<tool_call>\n{"name": "f", "arguments": {}}\n</tool_call>\n'
        '<tool_call>\n{"name": "g", "arguments": {"x": [1, null]}}\n</tool_call><|im_end|>\n'
        "<|im_start|>user\n<tool_response>\n1\n</tool_response>\n<tool_response>\n2\n</tool_response><|im_end|>\n"
        "<|im_start|>assistant\n⟦a<|im_end|>⟧\n"
    )


def test_the_system_turn_declares_the_tools_and_only_their_text_is_not_markup(qwen, tokenizer, calling, weather):
    spans = qwen.render((Message("system", "Be brief."), *calling), tokenizer, tools=[weather])
    assert [span.text for span in spans[:5]] == [
        "<|im_start|>system\n",
        "Be brief.",
        "\n\n",
        spans[3].text,
        "\n",
    ]
    assert spans[3].text.endswith("<tools>")
    described = '{"type": "function", "function": {"name": "get_weather", "description": "The weather in a city, e.g.'
    assert spans[5].text.startswith(described)
    assert (spans[5].markup, spans[5].train) == (False, False)
    assert spans[6].text.startswith("\n</tools>")


def test_a_response_is_trained_if_its_message_is(qwen, tokenizer, multi, marked):
    messages = (multi[0], dataclasses.replace(multi[1], train=False), *multi[2:])
    text = marked(qwen.render(messages, tokenizer))
    assert "\nThe Elbe.<|im_end|>\n" in text
    assert text.count("⟦") == 1


def test_the_generation_prompt_after_a_tool_ends_with_the_header(qwen, tokenizer, calling, marked):
    text = marked(qwen.render(calling[:3], tokenizer, add_generation_prompt=True))
    assert text.endswith("\n</tool_response><|im_end|>\n<|im_start|>assistant\n")


def test_stop_strings_and_refused_conversations(qwen, tokenizer, family, single):
    assert qwen.stop_strings(tokenizer) == ("<|im_end|>", "<|endoftext|>")
    with pytest.raises(HarnessError, match=r"template qwen: the tokenizer has no token <\|im_start\|>"):
        qwen.render(single, family("llama3"))
