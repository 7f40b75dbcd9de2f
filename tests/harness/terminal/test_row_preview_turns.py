"""Where turns begin, in renderings of every kind of frame."""

from __future__ import annotations

import pytest

from harness.terminal.row_preview import locate_turns
from harness.types import Message, Span, ToolCall

CHAT = (Message("user", "one"), Message("assistant", "two"), Message("user", "three"), Message("assistant", "four"))
CONTROLS = ("<a>", "<b>", "</s>")


def frame(text, trained=False):
    return Span(text, trained, markup=True)


def content(text, trained=False):
    return Span(text, trained)


def parts(spans, messages):
    text = "".join(span.text for span in spans)
    found = locate_turns(spans, messages, CONTROLS)
    ends = [place for _, place in found[1:]] + [len(text)]
    return [(label, text[begin:end]) for (label, begin), end in zip(found, ends, strict=True)]


@pytest.mark.parametrize("merged", [True, False])
def test_end_of_turn_and_next_header_are_separated_even_in_one_span(merged):
    def between(end, header):
        return [frame(end + header)] if merged else [frame(end), frame(header)]

    spans = [
        *(frame("<a>user\n"), content("one"), *between("<b>\n", "<a>assistant\n"), content("two", True)),
        *(frame("<b>", True), frame("\n<a>user\n"), content("three"), *between("<b>\n", "<a>assistant\n")),
        *(content("four", True), frame("<b>", True), frame("\n")),
    ]
    assert parts(spans, CHAT) == [
        ("user", "<a>user\none<b>\n"),
        ("assistant", "<a>assistant\ntwo<b>\n"),
        ("user", "<a>user\nthree<b>\n"),
        ("assistant", "<a>assistant\nfour<b>\n"),
    ]


def test_headings_without_control_tokens_belong_to_the_next_turn():
    spans = [frame("Do: "), content("one"), frame("\n\nAnswer: "), content("two", True), frame("</s>", True)]
    assert parts(spans, CHAT[:2]) == [("user", "Do: one\n\n"), ("assistant", "Answer: two</s>")]


def test_messages_rendered_as_one_content_are_one_turn():
    messages = (Message("system", "be brief"), *CHAT[:2])
    spans = [frame("<a>"), content("be brief\n\none"), frame("<b>"), content("two", True), frame("</s>", True)]
    assert parts(spans, messages) == [("system + user", "<a>be brief\n\none"), ("assistant", "<b>two</s>")]


def test_input_belongs_to_its_message():
    messages = (Message("user", "one", input="text"), CHAT[1])
    spans = [content("one"), frame(" input: "), content("text"), frame(" says "), content("two", True)]
    assert parts(spans, messages) == [("user", "one input: text"), ("assistant", " says two")]


def test_tool_calls_and_results_are_turns_and_tool_descriptions_are_not():
    call = Message("assistant", "", tool_calls=(ToolCall("weather", {"city": "Bonn"}),))
    messages = (CHAT[0], call, Message("tool", "12 degrees", name="weather"), CHAT[1])
    spans = [
        *(frame("<a>tools "), content('{"name": "weather"}'), frame("<b><a>user "), content("one")),
        *(frame("<b><a>call "), frame("!", True), content('weather("Bonn")', True), frame("<b>", True)),
        *(frame("<a>tool "), content("12 degrees"), frame("<b><a>assistant "), content("two", True)),
    ]
    assert parts(spans, messages) == [
        ("user", '<a>tools {"name": "weather"}<b><a>user one<b>'),
        ("assistant", '<a>call !weather("Bonn")<b>'),
        ("tool weather", "<a>tool 12 degrees<b>"),
        ("assistant", "<a>assistant two"),
    ]


def test_equal_text_of_both_speakers_is_two_turns():
    messages = (Message("user", "yes"), Message("assistant", "yes"))
    spans = [content("yes"), frame("<b><a>"), content("yes", True), frame("<b>", True)]
    assert parts(spans, messages) == [("user", "yes<b>"), ("assistant", "<a>yes<b>")]


def test_unrecognized_contents_are_one_turn_of_all_messages():
    assert parts([content("???")], CHAT[:2]) == [("user + assistant", "???")]
