"""Rows with multiple-choice questions."""

from __future__ import annotations

import pytest

from harness.data.reading.row_formats import parse_multiple_choice
from harness.errors import InvalidRow
from harness.types import Message

ROW = {"question": "Which?", "choices": ["red", "blue", "A"], "answer": 1}


@pytest.mark.parametrize(
    ("answer", "gold_choice"),
    [(0, "red"), (2, "A"), ("B", "blue"), ("b", "blue"), (" C ", "A"), ("blue", "blue"), ("A", "A")],
)
def test_gold_choice_is_the_response(answer, gold_choice):
    messages, choices = parse_multiple_choice({**ROW, "answer": answer})
    assert messages == [Message("user", "Which?"), Message("assistant", gold_choice)]
    assert choices == ("red", "blue", "A")


def test_row_may_have_a_prompt_and_a_system_message():
    row = {"prompt": "Which?", "system": "Be brief.", "choices": ["x", "y"], "answer": "y"}
    assert [message.role for message in parse_multiple_choice(row)[0]] == ["system", "user", "assistant"]


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"answer": 3}, "the answer '3'"),
        ({"answer": -1}, "the answer '-1'"),
        ({"answer": True}, "the answer 'True'"),
        ({"answer": "Z"}, "the answer 'Z'"),
        ({"answer": None}, "the answer 'None'"),
        ({"choices": ["one"]}, "fewer than two choices"),
        ({"choices": ["one", "one"]}, "two equal ones"),
        ({"choices": ["one", ""]}, "not an array of texts"),
        ({"choices": "one two"}, "not an array of texts"),
        ({"question": " "}, "no question"),
        ({"prompt": "Who?"}, "a 'question' and a 'prompt'"),
    ],
)
def test_row_that_is_not_multiple_choice_is_invalid(change, text):
    with pytest.raises(InvalidRow, match=text):
        parse_multiple_choice({**ROW, **change})
