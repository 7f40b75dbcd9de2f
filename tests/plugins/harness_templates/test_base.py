"""Splitting conversations, and refusing those that a format cannot express."""

from __future__ import annotations

import pytest
from harness_templates.base import (
    add_system_message,
    message_text,
    require_tokens,
    split_turns,
    validate_alternation,
    validate_conversation,
)

from harness import HarnessError, Message, ToolCall

USER, ANSWER, SYSTEM = Message("user", "q"), Message("assistant", "a"), Message("system", "s")


def test_message_text_has_the_input_below_the_content():
    assert message_text(Message("user", "Sum up.", input="Text")) == "Sum up.\n\nText"
    assert message_text(Message("user", "Sum up.", input="  ")) == message_text(Message("user", "Sum up.")) == "Sum up."


def test_split_turns_returns_the_system_message_and_the_turns():
    system, turns = split_turns((SYSTEM, USER, ANSWER, USER), add_generation_prompt=True, template="x")
    assert system == "s"
    assert [(turn.user, turn.response) for turn in turns] == [(USER, ANSWER), (USER, None)]


@pytest.mark.parametrize(
    ("messages", "open", "what"),
    [
        ((USER,), False, "ends with user"),
        ((), False, "ends with nothing"),
        ((USER, ANSWER), True, "cannot end with a response"),
        ((SYSTEM,), True, "no user message"),
        ((Message("critic", "t"), USER, ANSWER), False, "the format has no role 'critic'"),
        ((Message("text", "t"),), False, "the format has no role 'text'"),
    ],
)
def test_an_invalid_conversation_is_refused(messages, open, what):
    with pytest.raises(HarnessError, match=what) as error:
        validate_conversation(messages, add_generation_prompt=open, template="x")
    assert error.value.where == "template x"


@pytest.mark.parametrize("messages", [(USER, USER, ANSWER), (USER, SYSTEM, USER, ANSWER), (SYSTEM, ANSWER)])
def test_turns_that_do_not_alternate_are_refused(messages):
    with pytest.raises(HarnessError, match=r"instead of|no user message"):
        split_turns(messages, add_generation_prompt=False, template="x")


def test_the_error_counts_messages_from_the_first_turn():
    with pytest.raises(HarnessError, match="message 2 after the system message is 'user' instead of 'assistant'"):
        validate_alternation((SYSTEM, USER, USER, ANSWER), "x")
    with pytest.raises(HarnessError, match="template x: message 1 is 'assistant' instead of 'user'"):
        validate_alternation((ANSWER,), "x")


def test_add_system_message_does_not_replace_one():
    assert add_system_message((USER, ANSWER), "s") == (SYSTEM, USER, ANSWER)
    assert add_system_message((SYSTEM, USER), "other") == (SYSTEM, USER)
    assert add_system_message((USER,), None) == (USER,)
    assert add_system_message((USER,), "") == (Message("system", ""), USER)


# -- tools ------------------------------------------------------------------------------------------------------------

CALL = Message("assistant", "", tool_calls=(ToolCall("f", {}),))
RESULT = Message("tool", "1")


@pytest.mark.parametrize(
    ("messages", "tools", "what"),
    [
        ((USER, ANSWER), ({"name": "f"},), "does not support tools"),
        ((USER, CALL), (), r"does not support tool calls \(message 2\)"),
        ((USER, RESULT, ANSWER), (), r"does not support tool answers \(message 2\)"),
    ],
)
def test_a_format_without_tools_names_templates_with_tools(messages, tools, what):
    with pytest.raises(HarnessError, match=what) as error:
        validate_conversation(messages, add_generation_prompt=False, template="x", tools=tools)
    assert "qwen, llama3 or mistral" in error.value.hint


@pytest.mark.parametrize(
    ("messages", "what"),
    [
        ((USER, RESULT, ANSWER), "message 2 is a tool's answer without an unanswered call before it"),
        ((USER, CALL, RESULT, RESULT, ANSWER), "message 4 is a tool's answer"),
        ((USER, CALL, RESULT, ANSWER, USER, RESULT, ANSWER), "message 6 is a tool's answer"),
        ((Message("user", "q", tool_calls=CALL.tool_calls), ANSWER), r"message 1 \(user\) calls a tool"),
    ],
)
def test_unmatched_calls_and_answers_are_refused(messages, what):
    with pytest.raises(HarnessError, match=what):
        validate_conversation(messages, add_generation_prompt=False, template="x", supports_tools=True)


def test_a_tool_answer_belongs_to_the_assistants_turn():
    conversation = (SYSTEM, USER, CALL, RESULT, CALL, RESULT, ANSWER, USER, ANSWER)
    validate_conversation(conversation, add_generation_prompt=False, template="x", supports_tools=True)
    validate_alternation(conversation, "x")
    validate_conversation(conversation[:4], add_generation_prompt=True, template="x", supports_tools=True)
    with pytest.raises(HarnessError, match="is 'user' instead of 'assistant'"):
        validate_alternation((USER, CALL, RESULT, USER, ANSWER), "x")


def test_a_missing_token_is_named():
    tokenizer = type("Tokenizer", (), {"added_tokens_encoder": {"<a>": 1}})()
    require_tokens(tokenizer, ("<a>",), "x")
    with pytest.raises(HarnessError, match="template x: the tokenizer has no token <b>"):
        require_tokens(tokenizer, ("<a>", "<b>"), "x")
