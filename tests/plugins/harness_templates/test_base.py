"""Taking conversations apart, and refusing those that a format has no place for."""

from __future__ import annotations

import pytest
from harness_templates.base import check, check_alternation, require, take_apart, text_of, with_system

from harness import HarnessError, Message, ToolCall

USER, ANSWER, SYSTEM = Message("user", "q"), Message("assistant", "a"), Message("system", "s")


def test_text_of_puts_an_input_below_the_content():
    assert text_of(Message("user", "Sum up.", input="Text")) == "Sum up.\n\nText"
    assert text_of(Message("user", "Sum up.", input="  ")) == text_of(Message("user", "Sum up.")) == "Sum up."


def test_take_apart_gives_the_system_message_and_the_turns():
    system, turns = take_apart((SYSTEM, USER, ANSWER, USER), open=True, template="x")
    assert system == "s"
    assert [(turn.user, turn.response) for turn in turns] == [(USER, ANSWER), (USER, None)]


@pytest.mark.parametrize(
    ("messages", "open", "what"),
    [
        ((USER,), False, "ends with user"),
        ((), False, "ends with nothing"),
        ((USER, ANSWER), True, "cannot end with a response"),
        ((SYSTEM,), True, "no user message"),
        ((Message("critic", "t"), USER, ANSWER), False, "no place for the role 'critic'"),
        ((Message("text", "t"),), False, "no place for the role 'text'"),
    ],
)
def test_a_conversation_that_no_format_has_a_place_for_is_refused(messages, open, what):
    with pytest.raises(HarnessError, match=what) as error:
        check(messages, open=open, template="x")
    assert error.value.where == "template x"


@pytest.mark.parametrize("messages", [(USER, USER, ANSWER), (USER, SYSTEM, USER, ANSWER), (SYSTEM, ANSWER)])
def test_turns_that_do_not_alternate_are_refused(messages):
    with pytest.raises(HarnessError, match=r"must stand|no user message"):
        take_apart(messages, open=False, template="x")


def test_the_refusal_counts_from_the_first_turn():
    with pytest.raises(HarnessError, match="message 2 after the system message is 'user' where 'assistant' must stand"):
        check_alternation((SYSTEM, USER, USER, ANSWER), "x")
    with pytest.raises(HarnessError, match="template x: message 1 is 'assistant' where 'user' must stand"):
        check_alternation((ANSWER,), "x")


def test_with_system_fills_in_and_does_not_replace():
    assert with_system((USER, ANSWER), "s") == (SYSTEM, USER, ANSWER)
    assert with_system((SYSTEM, USER), "other") == (SYSTEM, USER)
    assert with_system((USER,), None) == (USER,)
    assert with_system((USER,), "") == (Message("system", ""), USER)


# -- tools ------------------------------------------------------------------------------------------------------------

CALL = Message("assistant", "", calls=(ToolCall("f", {}),))
RESULT = Message("tool", "1")


@pytest.mark.parametrize(
    ("messages", "tools", "what"),
    [
        ((USER, ANSWER), ({"name": "f"},), "no place for tools"),
        ((USER, CALL), (), r"no place for tool calls \(message 2\)"),
        ((USER, RESULT, ANSWER), (), r"no place for what a tool answers \(message 2\)"),
    ],
)
def test_a_format_without_tools_says_so_and_names_those_that_have_them(messages, tools, what):
    with pytest.raises(HarnessError, match=what) as error:
        check(messages, open=False, template="x", tools=tools)
    assert "qwen, llama3 or mistral" in error.value.hint


@pytest.mark.parametrize(
    ("messages", "what"),
    [
        ((USER, RESULT, ANSWER), "message 2 is what a tool answers, and no call before it is left to answer"),
        ((USER, CALL, RESULT, RESULT, ANSWER), "message 4 is what a tool answers"),
        ((USER, CALL, RESULT, ANSWER, USER, RESULT, ANSWER), "message 6 is what a tool answers"),
        ((Message("user", "q", calls=CALL.calls), ANSWER), r"message 1 \(user\) calls a tool"),
    ],
)
def test_calls_and_answers_that_do_not_fit_together_are_refused(messages, what):
    with pytest.raises(HarnessError, match=what):
        check(messages, open=False, template="x", takes_tools=True)


def test_what_a_tool_answers_belongs_to_the_assistants_turn():
    conversation = (SYSTEM, USER, CALL, RESULT, CALL, RESULT, ANSWER, USER, ANSWER)
    check(conversation, open=False, template="x", takes_tools=True)
    check_alternation(conversation, "x")
    check(conversation[:4], open=True, template="x", takes_tools=True)
    with pytest.raises(HarnessError, match="is 'user' where 'assistant' must stand"):
        check_alternation((USER, CALL, RESULT, USER, ANSWER), "x")


def test_a_token_that_the_tokenizer_lacks_is_named():
    tokenizer = type("Tokenizer", (), {"added_tokens_encoder": {"<a>": 1}})()
    require(tokenizer, ("<a>",), "x")
    with pytest.raises(HarnessError, match="template x: the tokenizer has no token <b>"):
        require(tokenizer, ("<a>", "<b>"), "x")
