"""Layouts of chat templates: markup distinguished from contents."""

from __future__ import annotations

import pytest
from harness_templates.jinja_layout import ContentNotLocated, TemplateLayout, build_layout

from harness import Message

LAYOUT = TemplateLayout(("U ", " /U A ", " /A\n"), (((1, 3), (2, 3)),))


def test_spans_split_the_markup_where_training_begins_and_ends():
    assert [(span.text, span.train, span.markup) for span in LAYOUT.render_spans(("q", "a"))] == [
        ("U ", False, True),
        ("q", False, False),
        (" /U", False, True),
        (" A ", True, True),
        ("a", True, False),
        (" /A", True, True),
        ("\n", False, True),
    ]


@pytest.mark.parametrize(
    ("text", "contents", "written"),
    [
        ("U q /U A a /A\n", ("q", "a"), ("q", "a")),
        ("U q /U A a /A\n", ("\n q ", "a\n"), ("q", "a")),
        ("U  /U A  /U A a /A\n", (" /U A ", "a"), (" /U A ", "a")),  # a content that looks like markup
        ("U  /U A /U A a /A\n", ("", "/U A a"), ("", "/U A a")),
        ('U q\\n" /U A a /A\n', ('q\n"', "a"), None),  # half of it as JSON
        ('U q\\n\\" /U A a /A\n', ('q\n"', "a"), ('q\\n\\"', "a")),  # all of it as JSON
        ("U q /U A b /A\n", ("q", "a"), None),
        ("U q /U A a /A\nmore", ("q", "a"), None),
    ],
)
def test_match_returns_the_written_contents_or_none(text, contents, written):
    assert LAYOUT.match(text, contents) == written


def test_contents_written_twice_are_not_located():
    with pytest.raises(ContentNotLocated):
        build_layout(
            lambda messages, open: "".join(2 * m.content for m in messages), [Message("user", "q")], [], False, "x"
        )


def test_a_trained_range_without_content_is_inside_one_piece_of_markup():
    # A response that is a call alone: all of it is written by the template.
    layout = TemplateLayout(("U ", " /U A call /A\n"), (((1, 6), (1, 13)),))
    assert [(span.text, span.train) for span in layout.render_spans(("q",))] == [
        ("U ", False),
        ("q", False),
        (" /U A ", False),
        ("call /A", True),
        ("\n", False),
    ]
