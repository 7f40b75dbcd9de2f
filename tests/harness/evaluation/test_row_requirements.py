"""Rows that the metrics of their suite cannot measure are refused before a model is loaded."""

from __future__ import annotations

from dataclasses import replace

import pytest

from harness import Example, HarnessError, Message
from harness.evaluation.row_requirements import check_suite_rows
from harness.types import Suite

SUITE = Suite("quiz", "rows", "domain", {}, limit=None, max_new_tokens=4, batch_size=2)


def build_row(*texts, choices=()):
    roles = ("text",) if len(texts) == 1 else ("user", "assistant") * (len(texts) // 2)
    messages = tuple(Message(role, text) for role, text in zip(roles, texts, strict=True))
    return Example("0", messages, "rows:1", choices=choices)


CONVERSATION, TEXT = build_row("q", "a"), build_row("once")
QUESTION, TWO_TURNS = build_row("q", "a", choices=("a", "b")), build_row("q", "a", "r", "b")


@pytest.mark.parametrize(
    ("row", "requirement", "what"),
    [
        (CONVERSATION, "choices", "is not a multiple-choice question"),
        (TEXT, "choices", "is not a multiple-choice question"),
        (CONVERSATION, "text", "is a conversation"),
        (TEXT, "answer", "a plain text has no prompt"),
    ],
)
def test_rows_that_a_metric_cannot_measure_are_refused_with_suite_and_location(row, requirement, what):
    with pytest.raises(HarnessError, match=what) as caught:
        check_suite_rows(SUITE, [row], [requirement])
    assert caught.value.where == "evaluate.quiz: rows:1"


@pytest.mark.parametrize(
    ("row", "requirement"),
    [(QUESTION, "choices"), (QUESTION, "answer"), (TEXT, "text"), (TEXT, "likelihood"), (TWO_TURNS, "answer")],
)
def test_rows_with_what_a_metric_requires_are_accepted(row, requirement):
    check_suite_rows(SUITE, [row], [requirement])
    check_suite_rows(SUITE, [], [requirement])


def test_every_row_of_a_plain_suite_needs_one_question():
    plain = replace(SUITE, plain=True)
    check_suite_rows(plain, [CONVERSATION, CONVERSATION], ["answer"])
    with pytest.raises(HarnessError, match="exactly one question"):
        check_suite_rows(plain, [CONVERSATION, TWO_TURNS], ["answer"])
