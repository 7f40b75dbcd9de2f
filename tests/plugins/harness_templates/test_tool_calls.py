"""Ids that match calls with answers, and JSON as in the models' training data."""

from __future__ import annotations

from harness_templates.tool_calls import assign_call_ids, dump_json, to_openai_tool

from harness import Message, ToolCall


def calls_of(*names):
    return Message("assistant", "", tool_calls=tuple(ToolCall(name, {}) for name in names))


def test_ids_are_numbered_through_the_conversation():
    ids = assign_call_ids(
        (Message("user", "q"), calls_of("f", "g"), Message("tool", "1"), calls_of("f"), Message("tool", "2"))
    )
    assert ids == [(), ("call00001", "call00002"), ("call00001",), ("call00003",), ("call00003",)]
    assert all(len(call_id) == 9 and call_id.isalnum() for group in ids for call_id in group)


def test_an_answer_belongs_to_the_call_of_its_tool():
    answers = [Message("tool", "2", name="g"), Message("tool", "1"), Message("tool", "3", name="g")]
    assert assign_call_ids([calls_of("f", "g", "g"), *answers])[1:] == [("call00002",), ("call00001",), ("call00003",)]


def test_an_answer_of_an_unknown_name_belongs_to_the_first_unanswered_call():
    assert assign_call_ids([calls_of("f", "g"), Message("tool", "1", name="other")])[1] == ("call00001",)


def calls_with_ids(*ids, name="f"):
    return Message("assistant", "", tool_calls=tuple(ToolCall(name, {}, identity) for identity in ids))


def test_the_datas_ids_are_used_if_the_format_accepts_them():
    answers = [Message("tool", "2", tool_call_id="b"), Message("tool", "1", tool_call_id="a")]
    assert assign_call_ids([calls_with_ids("a", "b"), *answers], mistral_ids=False) == [("a", "b"), ("b",), ("a",)]
    assert assign_call_ids([calls_with_ids("a", "b"), *answers]) == [
        ("call00001", "call00002"),
        ("call00002",),
        ("call00001",),
    ]
    messages = [calls_with_ids("abcDEF123", "000000000"), Message("tool", "2", tool_call_id="000000000")]
    assert assign_call_ids(messages) == [("abcDEF123", "000000000"), ("000000000",)]


def test_each_turn_has_either_the_datas_ids_or_numbered_ones():
    messages = [
        calls_with_ids("abcDEF123", "short"),
        Message("tool", "", tool_call_id="short"),
        calls_with_ids("abcDEF123"),
        calls_with_ids("call_1", None),
    ]
    assert assign_call_ids(messages) == [
        ("call00001", "call00002"), ("call00002",), ("abcDEF123",), ("call00004", "call00005")
    ]  # fmt: skip


def test_an_answer_without_an_id_belongs_to_the_first_unclaimed_call():
    answers = [Message("tool", "2"), Message("tool", "1", tool_call_id="a")]
    assert assign_call_ids([calls_with_ids("a", "b"), *answers], mistral_ids=False) == [("a", "b"), ("b",), ("a",)]


def test_json_keeps_order_and_characters():
    assert dump_json({"b": "Köln <b>", "a": None}) == '{"b": "Köln <b>", "a": null}'
    assert dump_json(to_openai_tool({"name": "f"})) == '{"type": "function", "function": {"name": "f"}}'
