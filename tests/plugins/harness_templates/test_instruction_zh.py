"""The Chinese instruction prompt, to the letter."""

from __future__ import annotations

import pytest

from harness import Message


@pytest.fixture
def instruction_zh(make):
    return make("instruction_zh")


def test_a_single_turn_has_the_published_text(instruction_zh, tokenizer, marked):
    messages = (Message("user", "说一条河。"), Message("assistant", "长江。"))
    expected = "### 指令:\n说一条河。\n\n### 回答:\n⟦长江。</s>⟧"
    assert marked(instruction_zh.render(messages, tokenizer)) == expected


def test_an_input_has_its_heading(instruction_zh, tokenizer, marked):
    messages = (Message("user", "概括。", input="很长的故事。"), Message("assistant", "故事。"))
    expected = "### 指令:\n概括。\n\n### 输入:\n很长的故事。\n\n### 回答:\n⟦故事。</s>⟧"
    assert marked(instruction_zh.render(messages, tokenizer)) == expected


def test_several_turns_and_a_system_message(instruction_zh, tokenizer, multi, marked):
    expected = (
        "简洁。\n\n### 指令:\nName a river.\n\n### 回答:\n⟦The Elbe.</s>⟧"
        "\n\n### 指令:\n再说一条河。\n\n### 回答:\n⟦长江 🙂</s>⟧"
    )
    assert marked(instruction_zh.render((Message("system", "简洁。"), *multi), tokenizer)) == expected


def test_the_generation_prompt_ends_with_the_header(instruction_zh, tokenizer, single, marked):
    expected = "### 指令:\nName a river.\n\n### 回答:\n"
    assert marked(instruction_zh.render(single[:1], tokenizer, add_generation_prompt=True)) == expected
