"""The check `pii`."""

from __future__ import annotations

import pytest
from harness_checks.personal_data import PersonalData, passes_luhn

from harness.types import Example, Message, ToolCall

KINDS = ("email", "phone", "card")


def find(*messages, kinds=KINDS, ignore=()):
    rows = [Example("0", messages, "a.jsonl:7")]
    return list(PersonalData(kinds, ignore).find_issues(rows, name="a", is_training=True))


@pytest.mark.parametrize(
    ("text", "noun"),
    [
        ("write to ann.smith+tag@mail.acme.co.uk.", "an e-mail address"),
        ("<jürgen@müller.de>", "an e-mail address"),
        ("call +49 (30) 901820 now", "a phone number"),
        ("call (212) 555-0100", "a phone number"),
        ("212-555-0100", "a phone number"),
        ("card 4111 1111 1111 1111", "a card number"),
        ("5500005555555559", "a card number"),
    ],
)
def test_personal_data_is_found_and_not_repeated(text, noun):
    (finding,) = find(Message("user", "hello"), Message("assistant", text))
    assert (finding.location, finding.text) == ("a.jsonl:7", f"{noun} in message 2 (assistant)")


@pytest.mark.parametrize(
    "text",
    [
        "mail@localhost", "@user", "a+b=12", "2026-11-29", "version 1.2.3-4567", "ISBN 978-3-16-148410-0",
        "4111 1111 1111 1112", "pi is 3.14159265358979323846", "+1 2", "order 20261129120001",
    ],
)  # fmt: skip
def test_other_text_is_not_personal_data(text):
    assert find(Message("user", text)) == []


def test_inputs_reasoning_and_call_arguments_are_searched():
    call = ToolCall("send", {"to": "ann@acme.com"})
    for message in (
        Message("user", "x", "ann@acme.com"),
        Message("assistant", "x", reasoning="ann@acme.com"),
        Message("assistant", "", tool_calls=(call,)),
    ):
        assert len(find(message)) == 1, message


def test_kinds_and_harmless_texts_are_options():
    message = Message("text", "ann@acme.com, bob@example.com, 212-555-0100")
    assert [finding.text for finding in find(message, kinds=["phone"])] == ["a phone number in the text"]
    assert [finding.text for finding in find(message, kinds=["email"], ignore=["@example.com", "@acme.com"])] == []


def test_the_checksum_of_a_card_number():
    assert passes_luhn([4, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1])
    assert passes_luhn([7, 9, 9, 2, 7, 3, 9, 8, 7, 1, 3])  # the example of ISO/IEC 7812-1
    assert not passes_luhn([7, 9, 9, 2, 7, 3, 9, 8, 7, 1, 0])
    assert not passes_luhn([0] * 16)
