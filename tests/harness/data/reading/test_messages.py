"""Messages, tool calls, tool results and training flags, as data sets write them."""

import json

import pytest

from harness.data.reading.conversation import build_example, example_id, prompt_hashes
from harness.data.reading.messages import parse_messages
from harness.data.reading.row_formats import parse_examples
from harness.data.reading.row_options import RowOptions
from harness.data.reading.tool_calls import parse_tools
from harness.errors import InvalidRow
from harness.types import Message, ToolCall

CALL = {"id": "c1", "type": "function", "function": {"name": "add", "arguments": '{"a": 1, "b": 2}'}}
USER_TURN = {"role": "user", "content": "1 + 2?"}
ASSISTANT_TURN = {"role": "assistant", "content": "3."}
TOOL = {"name": "add", "description": "Adds.", "parameters": {"type": "object", "properties": {}}}


def parse_openai(*messages, **more):
    return parse_examples({"messages": [USER_TURN, *messages], **more}, "messages", "x:1")[0]


def parse_sharegpt(*turns, **more):
    conversations = [{"from": role, "value": value} for role, value in turns]
    return parse_examples({"conversations": conversations, **more}, "sharegpt", "x:1")[0]


def invalid_reason(parse, *args, **more):
    with pytest.raises(InvalidRow) as caught:
        parse(*args, **more)
    return caught.value.what


# -- tools ------------------------------------------------------------------------------------------------------------


def test_openai_calls_and_results_become_messages_with_calls_and_names():
    row = parse_openai(
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": "tool", "tool_call_id": "c1", "content": "3"},
        ASSISTANT_TURN,
        tools=[{"type": "function", "function": TOOL}],
    )
    assert row.messages == (
        Message("user", "1 + 2?"),
        Message("assistant", "", tool_calls=(ToolCall("add", {"a": 1, "b": 2}, "c1"),)),
        Message("tool", "3", name="add", tool_call_id="c1"),
        Message("assistant", "3."),
    )
    assert row.tools == (TOOL,)


def test_sharegpt_calls_and_observations_become_the_same_conversation():
    call = {"name": "add", "arguments": {"a": 1, "b": 2}}
    turns = [("human", "1 + 2?"), ("function_call", json.dumps(call)), ("observation", "3"), ("gpt", "3.")]
    from_sharegpt = parse_sharegpt(*turns, tools=json.dumps([TOOL]))
    from_openai = parse_openai(
        {"role": "assistant", "tool_calls": [{"name": "add", "arguments": call["arguments"]}]},
        {"role": "function", "name": "add", "content": "3"},
        ASSISTANT_TURN,
        tools=[TOOL],
    )
    assert (from_sharegpt.messages, from_sharegpt.tools, from_sharegpt.id) == (
        from_openai.messages,
        from_openai.tools,
        from_openai.id,
    )


def test_several_calls_of_one_turn_have_several_results():
    calls = [CALL, {**CALL, "id": "c2", "function": {"name": "sub", "arguments": {}}}]
    row = parse_openai(
        {"role": "assistant", "content": "Let me see.", "tool_calls": calls},
        {"role": "tool", "tool_call_id": "c2", "content": "-1"},
        {"role": "tool", "tool_call_id": "c1", "content": {"sum": 3}},
        ASSISTANT_TURN,
    )
    assert [call.name for call in row.messages[1].tool_calls] == ["add", "sub"]
    assert row.messages[2:4] == (  # in the order of the calls: formats without ids pair them by it
        Message("tool", '{"sum": 3}', name="add", tool_call_id="c1"),
        Message("tool", "-1", name="sub", tool_call_id="c2"),
    )
    many = json.dumps([{"name": "add", "arguments": {}}, {"name": "sub", "arguments": "{}"}])
    row = parse_sharegpt(
        ("human", "?"), ("gpt", "Let me see."), ("function_call", many), ("observation", "3"), ("gpt", "3.")
    )
    assert [(m.content, [call.name for call in m.tool_calls]) for m in row.messages][1] == (
        "Let me see.",
        ["add", "sub"],
    )
    assert row.messages[2].name is None  # the data does not say which of the two calls it answers


TWO = [{"id": call_id, "function": {"name": "add", "arguments": {"a": n}}} for n, call_id in enumerate(("c1", "c2"))]


def parse_results(*answers, calls=TWO):
    row = parse_openai(
        {**ASSISTANT_TURN, "tool_calls": calls}, *({"role": "tool", **answer} for answer in answers), ASSISTANT_TURN
    )
    return [(message.content, message.name, message.tool_call_id) for message in row.messages[2:-1]]


def test_results_out_of_order_are_paired_by_id():
    second, first = {"tool_call_id": "c2", "content": "two"}, {"tool_call_id": "c1", "content": "one"}
    assert parse_results(second, first) == parse_results(first, second) == [("one", "add", "c1"), ("two", "add", "c2")]


def test_result_without_id_belongs_to_a_remaining_call():
    calls = [*TWO, {"id": "c3", "function": {"name": "sub"}}]
    results = [{"name": "sub", "content": "three"}, {"content": "one"}, {"tool_call_id": "c2", "content": "two"}]
    assert [content for content, _, _ in parse_results(*results, calls=calls)] == ["one", "two", "three"]
    assert [content for content, _, _ in parse_results(*results[:2], calls=calls)] == ["three", "one"], (
        "without ids the order of the data is kept"
    )


def test_surplus_result_follows_the_results_with_ids():
    results = [
        {"content": "too many"},
        {"tool_call_id": "c2", "content": "two"},
        {"tool_call_id": "c1", "content": "one"},
    ]
    assert [content for content, _, _ in parse_results(*results)] == ["one", "two", "too many"]


def test_ids_may_be_integers_and_are_dropped_if_the_only_call_has_none():
    calls = [{**call, "id": number} for number, call in enumerate(TWO)]
    results = [{"tool_call_id": 1, "content": "two"}, {"tool_call_id": 0, "content": "one"}]
    assert parse_results(*results, calls=calls) == [("one", "add", "0"), ("two", "add", "1")]
    assert parse_results({"tool_call_id": "x", "content": "one"}, calls=[{"name": "add"}]) == [("one", "add", None)]


def test_pairing_is_content_and_ids_are_not():
    def parse_calls(ids, *order):
        calls = [{"id": call_id, "function": {"name": "add", "arguments": {"a": n}}} for n, call_id in enumerate(ids)]
        answers = [{"role": "tool", "tool_call_id": ids[n], "content": content} for n, content in order]
        return parse_openai({**ASSISTANT_TURN, "tool_calls": calls}, *answers, ASSISTANT_TURN)

    row = parse_calls(("c1", "c2"), (0, "one"), (1, "two"))
    assert parse_calls(("k7", "k8"), (1, "two"), (0, "one")).id == row.id
    assert parse_calls(("c1", "c2"), (1, "one"), (0, "two")).id != row.id


def test_completion_may_have_results_of_calls_in_its_prompt():
    (row,) = parse_examples(
        {
            "prompt": [USER_TURN, {"role": "assistant", "tool_calls": TWO}],
            "completion": [
                {"role": "tool", "tool_call_id": "c2", "content": "two"},
                {"role": "tool", "tool_call_id": "c1", "content": "one"},
                ASSISTANT_TURN,
            ],
        },
        "prompt_completion",
        "x:1",
    )
    assert [(message.role, message.content, message.train) for message in row.messages[1:]] == [
        ("assistant", "", False), ("tool", "one", True), ("tool", "two", True), ("assistant", "3.", True)
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("calls", "answers", "what"),
    [
        (TWO, [{"tool_call_id": "c9"}], "answers the call 'c9' in messages[2], and the turn before has no such call"),
        (TWO[:1], [{"tool_call_id": "c9"}], "answers the call 'c9' in messages[2], and the turn before has no such"),
        ([{"name": "add"}] * 2, [{"tool_call_id": "c1"}], "answers the call 'c1' in messages[2], and the turn before"),
        (TWO, [{"tool_call_id": "c1"}] * 2, "answers the call 'c1' a second time in messages[3]"),
        (
            TWO,
            [{"tool_call_id": "c1", "name": "sub"}],
            "answers the call 'c1' of 'add' in messages[2], and names the tool 'sub'",
        ),
        ([TWO[0], TWO[0]], [], "has two calls with the id 'c1' in messages[1]"),
        (TWO, [{"tool_call_id": True}], "has the value True in messages[2].tool_call_id, not text"),
        ([{**TWO[0], "id": {"a": 1}}], [], "has an object in messages[1].tool_calls[0].id, not text"),
        (
            [{**TWO[0], "id": "\ud83d"}],
            [],
            "has half of a surrogate pair in messages[1].tool_calls[0].id, which is not",
        ),
    ],
)
def test_ids_without_a_matching_call_are_invalid(calls, answers, what):
    turns = [{"role": "tool", "content": "3", **answer} for answer in answers]
    assert invalid_reason(parse_openai, {**ASSISTANT_TURN, "tool_calls": calls}, *turns, ASSISTANT_TURN).startswith(
        what
    )


def build_nested(levels, inner=1):
    for _ in range(levels):
        inner = {"a": inner}
    return inner


@pytest.mark.parametrize(
    ("messages", "more", "what"),
    [
        (
            [{**ASSISTANT_TURN, "tool_calls": [{"name": "a", "arguments": build_nested(65)}]}],
            {},
            "is nested deeper than 64 levels in ",
        ),
        (
            [ASSISTANT_TURN],
            {"tools": [{"name": "a", "parameters": [build_nested(64)]}]},
            "is nested deeper than 64 levels in tools[0]",
        ),
        (
            [{**ASSISTANT_TURN, "tool_calls": [CALL]}, {"role": "tool", "content": build_nested(3000)}, ASSISTANT_TURN],
            {},
            "is nested deeper than 64 levels in messages[2].content",
        ),
        (
            [{**ASSISTANT_TURN, "tool_calls": [CALL]}, {"role": "tool", "content": {"x": b"1"}}, ASSISTANT_TURN],
            {},
            "has a value in messages[2].content that JSON cannot hold: Object of type bytes",
        ),
        (
            [{**ASSISTANT_TURN, "tool_calls": [{"name": "a", "arguments": {"x": float("nan")}}]}],
            {},
            "has a call or a tool that JSON",
        ),
        (
            [{**ASSISTANT_TURN, "tool_calls": [{"name": "a", "arguments": '{"b": 1, "x": 1, "c": 2, "x": 3}'}]}],
            {},
            "has the key 'x' twice in messages[1].tool_calls[0].arguments",
        ),
    ],
)
def test_values_that_json_cannot_hold_or_that_are_too_deep_are_invalid(messages, more, what):
    assert invalid_reason(parse_openai, *messages, **more).startswith(what)


def test_call_may_be_nested_up_to_the_limit():
    row = parse_openai({**ASSISTANT_TURN, "tool_calls": [{"name": "a", "arguments": build_nested(64)}]})
    assert row.messages[-1].tool_calls[0].arguments == build_nested(64)


def test_conversation_may_end_with_a_call_in_function_call():
    last = parse_openai({"role": "assistant", "content": None, "function_call": {"name": "add", "arguments": ""}})
    assert last.messages[-1] == Message("assistant", "", tool_calls=(ToolCall("add", {}),))


@pytest.mark.parametrize("value", [None, "", " ", "[]", []])
def test_empty_tools_may_be_written_in_many_ways(value):
    assert parse_tools(value) == ()


@pytest.mark.parametrize(
    ("value", "what"),
    [
        ("[{", "has text in 'tools' that is not JSON: '[{'"),
        ({"add": {}}, "has 'tools' that are an object, not an array"),
        ([{"description": "Adds."}], "has a tool without a name in tools[0]"),
        (["add"], "has a tool without a name in tools[0]"),
    ],
)
def test_invalid_tools_are_refused(value, what):
    assert invalid_reason(parse_tools, value) == what


@pytest.mark.parametrize(
    ("messages", "what"),
    [
        ([{**ASSISTANT_TURN, "tool_calls": "[{"}], "has text in messages[1].tool_calls that is not JSON: '[{'"),
        (
            [{**ASSISTANT_TURN, "tool_calls": {"name": "a"}}],
            "has an object in messages[1].tool_calls, not an array of calls",
        ),
        ([{**ASSISTANT_TURN, "tool_calls": [1]}], "has a call without a name in messages[1].tool_calls[0]"),
        ([{**ASSISTANT_TURN, "tool_calls": [{"name": " "}]}], "has a call without a name in messages[1].tool_calls[0]"),
        (
            [{**ASSISTANT_TURN, "tool_calls": [{"name": "a", "arguments": "[1]"}]}],
            "has an array in messages[1].tool_calls[0].arguments, not an object",
        ),
        (
            [{**ASSISTANT_TURN, "tool_calls": [{"name": "a", "arguments": "{'x': 1}"}]}],
            "has text in messages[1].tool_calls[0].arguments that is not JSON: \"{'x': 1}\"",
        ),
        (
            [
                {**ASSISTANT_TURN, "tool_calls": [CALL]},
                {"role": "tool", "tool_call_id": "c9", "content": "3"},
                ASSISTANT_TURN,
            ],
            "answers the call 'c9' in messages[2], and the turn before has no such call",
        ),
        (
            [
                {**ASSISTANT_TURN, "tool_calls": [CALL]},
                {"role": "tool", "tool_call_id": ["c1"], "content": "3"},
                ASSISTANT_TURN,
            ],
            "has an array in messages[2].tool_call_id, not text",
        ),
        (
            [{**ASSISTANT_TURN, "tool_calls": [CALL], "function_call": {"name": "b", "arguments": "{}"}}],
            "has 'tool_calls' and 'function_call' in messages[1]",
        ),
        (
            [ASSISTANT_TURN, {**USER_TURN, "tool_calls": [CALL]}, ASSISTANT_TURN],
            "has a call in messages[2], which is the user's turn",
        ),
        (
            [ASSISTANT_TURN, {**USER_TURN, "function_call": {"name": "b"}}, ASSISTANT_TURN],
            "has a call in messages[2], which is the user's turn",
        ),
        (
            [{**ASSISTANT_TURN, "tool_calls": [CALL]}, {"role": "tool", "name": 3, "content": "3"}, ASSISTANT_TURN],
            "has the value 3 in messages[2].name, not text",
        ),
        ([{**ASSISTANT_TURN, "tool_calls": [CALL]}, {"role": "tool", "content": "3"}, USER_TURN], "has no response"),
        (
            [{**ASSISTANT_TURN, "tool_calls": [CALL]}, {"role": "tool", "content": "3"}, USER_TURN, ASSISTANT_TURN],
            "has turn 4 from the user, expected the assistant",
        ),
        (
            [{**ASSISTANT_TURN, "content": "\ud83d", "tool_calls": [CALL]}],
            "has half of a surrogate pair, which is not a character",
        ),
        (
            [{**ASSISTANT_TURN, "tool_calls": [{"name": "a", "arguments": {"x": "\ud83d"}}]}],
            "has half of a surrogate pair, which is not a character",
        ),
        (
            [{**ASSISTANT_TURN, "tool_calls": [{"name": "a", "arguments": {"x": b"1"}}]}],
            "has a call or a tool that JSON cannot",
        ),
    ],
)
def test_invalid_calls_are_refused(messages, what):
    assert invalid_reason(parse_openai, *messages).startswith(what)


@pytest.mark.parametrize(
    ("value", "what"),
    [
        ("[]", "has no call in conversations[1].value"),
        ("add(1, 2)", "has text in conversations[1].value that is not JSON: 'add(1, 2)'"),
        ('{"arguments": {}}', "has a call without a name in conversations[1].value"),
    ],
)
def test_turn_of_calls_without_a_valid_call_is_refused(value, what):
    assert invalid_reason(parse_sharegpt, ("human", "?"), ("function_call", value)) == what


def test_calls_and_tools_are_part_of_the_content():
    def build_conversation(name="add", arguments=None, answer="add", offered=(TOOL,)):
        calls = [{"name": name, "arguments": arguments or {"a": 1, "b": 2}}]
        turn = {"role": "assistant", "content": None, "tool_calls": calls}
        return parse_openai(turn, {"role": "tool", "name": answer, "content": "3"}, ASSISTANT_TURN, tools=list(offered))

    changes = [
        {}, {"name": "sub"}, {"arguments": {"a": 1}}, {"answer": "sub"}, {"offered": ()},
        {"offered": ({**TOOL, "description": "Sums."},)},
    ]  # fmt: skip
    ids = {build_conversation(**change).id for change in changes}
    assert len(ids) == 6
    assert build_conversation().id == build_conversation(arguments={"b": 2, "a": 1}).id
    assert (
        prompt_hashes(build_conversation())[0]
        == prompt_hashes(build_conversation(offered=()))[0]
        != prompt_hashes(build_conversation(name="sub"))[0]
    )


# -- roles and contents -----------------------------------------------------------------------------------------------


def test_developer_becomes_system_and_content_may_be_text_parts():
    parts = [{"type": "text", "text": "1 +"}, {"type": "text", "text": " 2?"}]
    row = [{"role": "developer", "content": "Be brief."}, {"role": "user", "content": parts}, ASSISTANT_TURN]
    messages = parse_messages(row, "messages")
    assert [(message.role, message.content) for message in messages][:2] == [
        ("system", "Be brief."),
        ("user", "1 + 2?"),
    ]
    picture = [{"type": "text", "text": "What is it?"}, {"type": "image_url", "image_url": {}}]
    what = invalid_reason(parse_messages, [{"role": "user", "content": picture}], "messages")
    assert what == "has a part of the type 'image_url' in messages[0].content"


# -- training flags ----------------------------------------------------------------------------------------------------


def trained_flags(*flags, train_on="all"):
    messages = [turn for flag in flags for turn in (USER_TURN, {**ASSISTANT_TURN, **flag})]
    (row,) = parse_examples({"messages": messages}, "messages", "x:1", RowOptions(train_on=train_on))
    return [message.train for message in row.messages if message.role == "assistant"]


def test_training_flag_of_a_message():
    assert trained_flags({"train": False}, {"weight": 1}, {"weight": 0}, {"weight": None}) == [False, True, False, True]
    assert trained_flags({"train": True, "weight": 1.0}, {"train": False, "weight": 0}) == [True, False]
    assert trained_flags({}, {}, train_on="last") == [False, True]
    assert trained_flags({"weight": 0, "train": None}, {"train": True}, train_on="last") == [False, True]


@pytest.mark.parametrize(
    ("flag", "what"),
    [
        ({"weight": 0.5}, "has the value 0.5 in messages[1].weight"),
        ({"weight": 2}, "has the value 2 in messages[1].weight"),
        ({"weight": True}, "has the value True in messages[1].weight"),
        ({"weight": "1"}, "has the value 1 in messages[1].weight"),
        ({"train": 1}, "has the value 1 in messages[1].train"),
        ({"train": True, "weight": 0}, "has 'train' and 'weight' in messages[1] that contradict each other"),
        ({"train": False}, "has nothing to train: no response is flagged as trained"),
    ],
)
def test_invalid_flags_and_rows_without_trained_response_are_refused(flag, what):
    assert invalid_reason(trained_flags, flag) == what


def test_untrained_flag_on_the_last_response_leaves_nothing_to_train():
    assert "has nothing to train" in invalid_reason(trained_flags, {}, {"weight": 0}, train_on="last")


def test_only_responses_can_be_flagged_as_trained():
    turns = [{**USER_TURN, "train": True}, ASSISTANT_TURN]
    assert invalid_reason(parse_messages, turns, "messages") == "flags the user's turn in messages[0] as trained"
    assert parse_messages([{**USER_TURN, "weight": 0}, ASSISTANT_TURN], "messages")[0] == Message("user", "1 + 2?")


def test_training_flags_are_not_content():
    messages = [Message("user", "a"), Message("assistant", "b"), Message("user", "c"), Message("assistant", "d")]
    other = [*messages[:1], Message("assistant", "b", train=False), *messages[2:]]
    assert build_example(messages, "x").id == build_example(other, "y").id == example_id(messages)
