"""Beginnings of turns, for every kind of markup."""

from __future__ import annotations

import pytest

from harness.terminal.row_preview import locate_turns
from harness.types import Message, Span, ToolCall

CHAT = (Message("user", "one"), Message("assistant", "two"), Message("user", "three"), Message("assistant", "four"))
CONTROLS = ("<a>", "<b>", "</s>")


def markup(text, trained=False):
    return Span(text, trained, markup=True)


def content(text, trained=False):
    return Span(text, trained)


def split_text(spans, messages):
    text = "".join(span.text for span in spans)
    turns = locate_turns(spans, messages, CONTROLS)
    ends = [begin for _, begin in turns[1:]] + [len(text)]
    return [(label, text[begin:end]) for (label, begin), end in zip(turns, ends, strict=True)]


@pytest.mark.parametrize("merged", [True, False])
def test_end_of_turn_and_next_header_are_separated_even_in_one_span(merged):
    def between(end, header):
        return [markup(end + header)] if merged else [markup(end), markup(header)]

    spans = [
        *(markup("<a>user\n"), content("one"), *between("<b>\n", "<a>assistant\n"), content("two", True)),
        *(markup("<b>", True), markup("\n<a>user\n"), content("three"), *between("<b>\n", "<a>assistant\n")),
        *(content("four", True), markup("<b>", True), markup("\n")),
    ]
    assert split_text(spans, CHAT) == [
        ("user", "<a>user\none<b>\n"),
        ("assistant", "<a>assistant\ntwo<b>\n"),
        ("user", "<a>user\nthree<b>\n"),
        ("assistant", "<a>assistant\nfour<b>\n"),
    ]


def test_headings_without_control_tokens_belong_to_the_next_turn():
    spans = [markup("Do: "), content("one"), markup("\n\nAnswer: "), content("two", True), markup("</s>", True)]
    assert split_text(spans, CHAT[:2]) == [("user", "Do: one\n\n"), ("assistant", "Answer: two</s>")]


def test_messages_rendered_as_one_content_are_one_turn():
    messages = (Message("system", "be brief"), *CHAT[:2])
    spans = [markup("<a>"), content("be brief\n\none"), markup("<b>"), content("two", True), markup("</s>", True)]
    assert split_text(spans, messages) == [("system + user", "<a>be brief\n\none"), ("assistant", "<b>two</s>")]


def test_input_belongs_to_its_message():
    messages = (Message("user", "one", input="text"), CHAT[1])
    spans = [content("one"), markup(" input: "), content("text"), markup(" says "), content("two", True)]
    assert split_text(spans, messages) == [("user", "one input: text"), ("assistant", " says two")]


def test_tool_calls_and_results_are_turns_and_tool_descriptions_are_not():
    call = Message("assistant", "", tool_calls=(ToolCall("weather", {"city": "Bonn"}),))
    messages = (CHAT[0], call, Message("tool", "12 degrees", name="weather"), CHAT[1])
    spans = [
        *(markup("<a>tools "), content('{"name": "weather"}'), markup("<b><a>user "), content("one")),
        *(markup("<b><a>call "), markup("!", True), content('weather("Bonn")', True), markup("<b>", True)),
        *(markup("<a>tool "), content("12 degrees"), markup("<b><a>assistant "), content("two", True)),
    ]
    assert split_text(spans, messages) == [
        ("user", '<a>tools {"name": "weather"}<b><a>user one<b>'),
        ("assistant", '<a>call !weather("Bonn")<b>'),
        ("tool weather", "<a>tool 12 degrees<b>"),
        ("assistant", "<a>assistant two"),
    ]


def test_equal_text_of_both_speakers_is_two_turns():
    messages = (Message("user", "yes"), Message("assistant", "yes"))
    spans = [content("yes"), markup("<b><a>"), content("yes", True), markup("<b>", True)]
    assert split_text(spans, messages) == [("user", "yes<b>"), ("assistant", "<a>yes<b>")]


def test_unrecognized_contents_are_one_turn_of_all_messages():
    assert split_text([content("???")], CHAT[:2]) == [("user + assistant", "???")]
