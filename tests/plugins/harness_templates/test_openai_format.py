"""Conversations in OpenAI's shape, and the veil over tokens in tools and calls."""

from __future__ import annotations

from harness_templates.openai_format import Veil, as_openai, shape_of, tools_as_openai

from harness import Message, Span, ToolCall

CALL = Message("assistant", "", calls=(ToolCall("f", {"x": "<a>", "<a><b>": ["<b>", 1]}),))
TOOLS = ({"name": "f", "description": "<a>", "parameters": {"<b>": None}},)


def knowing(*tokens):
    """What stands for a tokenizer that knows these tokens."""
    return type("Tokenizer", (), {"added_tokens_encoder": dict.fromkeys(tokens, 1)})()


def test_messages_have_openais_keys_and_no_others():
    assert as_openai((Message("user", "q"), CALL, Message("tool", "1", name="f"), Message("assistant", "a"))) == [
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
    assert tools_as_openai(()) is None
    assert tools_as_openai(TOOLS) == [{"type": "function", "function": TOOLS[0]}]


def test_the_veil_takes_every_token_out_and_puts_it_back_as_text():
    veil = Veil.over((CALL,), TOOLS, knowing("<a>", "<b>", "<c>", " ", '"'))
    assert set(veil.stand_ins) == {"<a>", "<b>"}
    veiled = repr((veil.messages((CALL,)), veil.tools(TOOLS)))
    assert "<a>" not in veiled
    assert "<b>" not in veiled
    a, b = veil.stand_ins["<a>"], veil.stand_ins["<b>"]
    spans = (Span(f"<a>x {a}{b}", trained=True, frame=True), Span(a))
    assert veil.lift(spans) == (
        Span("<a>x ", trained=True, frame=True),
        Span("<a>", trained=True),
        Span("<b>", trained=True),
        Span(a),
    )


def test_a_stand_in_is_nobodys_text():
    plain = Veil.over((CALL,), (), knowing("<a>")).stand_ins["<a>"]
    taken = Veil.over((CALL, Message("user", plain)), ({"name": plain},), knowing("<a>")).stand_ins["<a>"]
    assert plain != taken


def test_without_tokens_nothing_is_veiled():
    veil = Veil.over((CALL,), TOOLS, knowing("<c>"))
    assert veil.messages((CALL,)) == (CALL,)
    assert veil.tools(TOOLS) is TOOLS
    assert veil.lift((Span("x", frame=True),)) == (Span("x", frame=True),)


def test_the_shape_tells_all_but_the_contents():
    alike = shape_of((Message("user", "q"), CALL), TOOLS)
    assert shape_of((Message("user", "other"), CALL), TOOLS) == alike
    others = [
        ((Message("user", " "), CALL), TOOLS),
        ((Message("user", "q"), Message("assistant", "")), TOOLS),
        ((Message("user", "q"), Message("assistant", "", calls=CALL.calls, trained=False)), TOOLS),
        ((Message("user", "q"), CALL), ()),
    ]
    assert alike not in [shape_of(*other) for other in others]
