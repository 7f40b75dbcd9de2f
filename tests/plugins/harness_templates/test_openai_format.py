"""Conversations in OpenAI's shape, and the veil over tokens in tools and calls."""

from __future__ import annotations

from harness_templates.openai_format import ToolTextEscaper, conversation_shape, to_openai_messages, to_openai_tools

from harness import Message, Span, ToolCall

CALL = Message("assistant", "", tool_calls=(ToolCall("f", {"x": "<a>", "<a><b>": ["<b>", 1]}),))
TOOLS = ({"name": "f", "description": "<a>", "parameters": {"<b>": None}},)


def knowing(*tokens):
    """What stands for a tokenizer that knows these tokens."""
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
    veil = ToolTextEscaper.for_conversation((CALL,), TOOLS, knowing("<a>", "<b>", "<c>", " ", '"'))
    assert set(veil.placeholders) == {"<a>", "<b>"}
    veiled = repr((veil.escape_messages((CALL,)), veil.escape_tools(TOOLS)))
    assert "<a>" not in veiled
    assert "<b>" not in veiled
    a, b = veil.placeholders["<a>"], veil.placeholders["<b>"]
    spans = (Span(f"<a>x {a}{b}", train=True, markup=True), Span(a))
    assert veil.unescape(spans) == (
        Span("<a>x ", train=True, markup=True),
        Span("<a>", train=True),
        Span("<b>", train=True),
        Span(a),
    )


def test_placeholders_do_not_occur_in_the_conversation():
    plain = ToolTextEscaper.for_conversation((CALL,), (), knowing("<a>")).placeholders["<a>"]
    taken = ToolTextEscaper.for_conversation(
        (CALL, Message("user", plain)), ({"name": plain},), knowing("<a>")
    ).placeholders["<a>"]
    assert plain != taken


def test_without_tokens_nothing_is_escaped():
    veil = ToolTextEscaper.for_conversation((CALL,), TOOLS, knowing("<c>"))
    assert veil.escape_messages((CALL,)) == (CALL,)
    assert veil.escape_tools(TOOLS) is TOOLS
    assert veil.unescape((Span("x", markup=True),)) == (Span("x", markup=True),)


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
