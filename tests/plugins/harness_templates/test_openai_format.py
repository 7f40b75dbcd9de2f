"""Conversations in OpenAI's shape, and the escaping of tokens in tools and calls."""

from __future__ import annotations

from harness_templates.openai_format import ToolTextEscaper, conversation_shape, to_openai_messages, to_openai_tools

from harness import Message, Span, ToolCall

CALL = Message("assistant", "", tool_calls=(ToolCall("f", {"x": "<a>", "<a><b>": ["<b>", 1]}),))
TOOLS = ({"name": "f", "description": "<a>", "parameters": {"<b>": None}},)


def tokenizer_with(*tokens):
    """Return a stand-in for a tokenizer with these tokens."""
    return type("Tokenizer", (), {"added_tokens_encoder": dict.fromkeys(tokens, 1)})()


def test_messages_have_only_openais_keys():
    assert to_openai_messages(
        (Message("user", "q"), CALL, Message("tool", "1", name="f"), Message("assistant", "a"))
    ) == [
        {"role": "user", "content": "q"},
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [
                {
                    "id": "call00001",
                    "type": "function",
                    "function": {"name": "f", "arguments": {"x": "<a>", "<a><b>": ["<b>", 1]}},
                }
            ],
        },
        {"role": "tool", "content": "1", "tool_call_id": "call00001", "name": "f"},
        {"role": "assistant", "content": "a"},
    ]
    assert to_openai_tools(()) is None
    assert to_openai_tools(TOOLS) == [{"type": "function", "function": TOOLS[0]}]


def test_the_escaper_replaces_every_token_and_restores_it_as_text():
    escaper = ToolTextEscaper.for_conversation((CALL,), TOOLS, tokenizer_with("<a>", "<b>", "<c>", " ", '"'))
    assert set(escaper.placeholders) == {"<a>", "<b>"}
    escaped = repr((escaper.escape_messages((CALL,)), escaper.escape_tools(TOOLS)))
    assert "<a>" not in escaped
    assert "<b>" not in escaped
    a, b = escaper.placeholders["<a>"], escaper.placeholders["<b>"]
    spans = (Span(f"<a>x {a}{b}", train=True, markup=True), Span(a))
    assert escaper.unescape(spans) == (
        Span("<a>x ", train=True, markup=True),
        Span("<a>", train=True),
        Span("<b>", train=True),
        Span(a),
    )


def test_placeholders_do_not_occur_in_the_conversation():
    plain = ToolTextEscaper.for_conversation((CALL,), (), tokenizer_with("<a>")).placeholders["<a>"]
    salted = ToolTextEscaper.for_conversation(
        (CALL, Message("user", plain)), ({"name": plain},), tokenizer_with("<a>")
    ).placeholders["<a>"]
    assert plain != salted


def test_without_tokens_nothing_is_escaped():
    escaper = ToolTextEscaper.for_conversation((CALL,), TOOLS, tokenizer_with("<c>"))
    assert escaper.escape_messages((CALL,)) == (CALL,)
    assert escaper.escape_tools(TOOLS) is TOOLS
    assert escaper.unescape((Span("x", markup=True),)) == (Span("x", markup=True),)


def test_the_shape_depends_on_everything_but_the_contents():
    alike = conversation_shape((Message("user", "q"), CALL), TOOLS)
    assert conversation_shape((Message("user", "other"), CALL), TOOLS) == alike
    others = [
        ((Message("user", " "), CALL), TOOLS),
        ((Message("user", "q"), Message("assistant", "")), TOOLS),
        ((Message("user", "q"), Message("assistant", "", tool_calls=CALL.tool_calls, train=False)), TOOLS),
        ((Message("user", "q"), CALL), ()),
    ]
    assert alike not in [conversation_shape(*other) for other in others]
