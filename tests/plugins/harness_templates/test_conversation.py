"""Taking conversations apart, and refusing those that a format has no place for."""

from __future__ import annotations

import pytest
from harness_templates.conversation import check_roles, take_apart, text_of

from harness import HarnessError, Message

USER, ANSWER, SYSTEM = Message("user", "q"), Message("assistant", "a"), Message("system", "s")


def test_text_of_puts_an_input_below_the_content():
    assert text_of(Message("user", "Sum up.", input="Text")) == "Sum up.\n\nText"
    assert text_of(Message("user", "Sum up.", input="  ")) == text_of(Message("user", "Sum up.")) == "Sum up."


def test_take_apart_gives_the_system_message_and_the_turns():
    system, turns = take_apart((SYSTEM, USER, ANSWER, USER), open=True, template="x")
    assert system == "s"
    assert [(turn.user, turn.response) for turn in turns] == [(USER, "a"), (USER, None)]


@pytest.mark.parametrize(
    ("messages", "open", "what"),
    [
        ((USER,), False, "ends with user"),
        ((), False, "ends with nothing"),
        ((USER, ANSWER), True, "cannot end with a response"),
        ((SYSTEM,), True, "no user message"),
        ((Message("tool", "t"), USER, ANSWER), False, "no place for the role 'tool'"),
    ],
)
def test_a_conversation_that_no_format_has_a_place_for_is_refused(messages, open, what):
    with pytest.raises(HarnessError, match=what) as error:
        check_roles(messages, open=open, template="x")
    assert error.value.where == "template x"


@pytest.mark.parametrize("messages", [(USER, USER, ANSWER), (USER, SYSTEM, USER, ANSWER), (SYSTEM, ANSWER)])
def test_turns_that_do_not_alternate_are_refused(messages):
    with pytest.raises(HarnessError, match=r"must stand|no user message"):
        take_apart(messages, open=False, template="x")
