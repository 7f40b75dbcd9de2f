import json

import pytest

from harness.data.reading.conversation import InvalidRow, build_example, example_id, prompt_hash
from harness.data.reading.messages import parse_messages
from harness.data.reading.row_formats import parse_row
from harness.data.reading.tool_calls import parse_tools
from harness.types import Message, ToolCall

CALL = {"id": "c1", "type": "function", "function": {"name": "add", "arguments": '{"a": 1, "b": 2}'}}
ASKED = {"role": "user", "content": "1 + 2?"}
SAID = {"role": "assistant", "content": "3."}
TOOL = {"name": "add", "description": "Adds.", "parameters": {"type": "object", "properties": {}}}


def openai(*messages, **more):
    return parse_row({"messages": [ASKED, *messages], **more}, "messages", "all", "x:1")


def sharegpt(*turns, **more):
    said = [{"from": speaker, "value": value} for speaker, value in turns]
    return parse_row({"conversations": said, **more}, "sharegpt", "all", "x:1")


def refused(read, *args, **more):
    with pytest.raises(InvalidRow) as caught:
        read(*args, **more)
    return caught.value.what


# -- tools ------------------------------------------------------------------------------------------------------------


def test_openais_calls_and_answers_are_messages_with_calls_and_names():
    row = openai(
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": "tool", "tool_call_id": "c1", "content": "3"},
        SAID,
        tools=[{"type": "function", "function": TOOL}],
    )
    assert row.messages == (
        Message("user", "1 + 2?"),
        Message("assistant", "", tool_calls=(ToolCall("add", {"a": 1, "b": 2}, "c1"),)),
        Message("tool", "3", name="add", tool_call_id="c1"),
        Message("assistant", "3."),
    )
    assert row.tools == (TOOL,)


def test_sharegpts_calls_and_observations_are_the_same_conversation():
    call = {"name": "add", "arguments": {"a": 1, "b": 2}}
    said = [("human", "1 + 2?"), ("function_call", json.dumps(call)), ("observation", "3"), ("gpt", "3.")]
    ours = sharegpt(*said, tools=json.dumps([TOOL]))
    theirs = openai(
        {"role": "assistant", "tool_calls": [{"name": "add", "arguments": call["arguments"]}]},
        {"role": "function", "name": "add", "content": "3"},
        SAID,
        tools=[TOOL],
    )
    assert (ours.messages, ours.tools, ours.id) == (theirs.messages, theirs.tools, theirs.id)


def test_several_calls_of_one_turn_are_answered_by_several_tools():
    calls = [CALL, {**CALL, "id": "c2", "function": {"name": "sub", "arguments": {}}}]
    row = openai(
        {"role": "assistant", "content": "Let me see.", "tool_calls": calls},
        {"role": "tool", "tool_call_id": "c2", "content": "-1"},
        {"role": "tool", "tool_call_id": "c1", "content": {"sum": 3}},
        SAID,
    )
    assert [call.name for call in row.messages[1].tool_calls] == ["add", "sub"]
    assert row.messages[2:4] == (  # in the order of the calls: formats without ids pair them by it
        Message("tool", '{"sum": 3}', name="add", tool_call_id="c1"),
        Message("tool", "-1", name="sub", tool_call_id="c2"),
    )
    many = json.dumps([{"name": "add", "arguments": {}}, {"name": "sub", "arguments": "{}"}])
    row = sharegpt(("human", "?"), ("gpt", "Let me see."), ("function_call", many), ("observation", "3"), ("gpt", "3."))
    assert [(m.content, [call.name for call in m.tool_calls]) for m in row.messages][1] == (
        "Let me see.",
        ["add", "sub"],
    )
    assert row.messages[2].name is None  # which of the two it answers, the data does not say


TWO = [{"id": one, "function": {"name": "add", "arguments": {"a": n}}} for n, one in enumerate(("c1", "c2"))]


def answered(*answers, calls=TWO):
    row = openai({**SAID, "tool_calls": calls}, *({"role": "tool", **answer} for answer in answers), SAID)
    return [(message.content, message.name, message.tool_call_id) for message in row.messages[2:-1]]


def test_two_calls_of_one_tool_answered_out_of_order_are_paired_by_id():
    second, first = {"tool_call_id": "c2", "content": "two"}, {"tool_call_id": "c1", "content": "one"}
    assert answered(second, first) == answered(first, second) == [("one", "add", "c1"), ("two", "add", "c2")]


def test_an_answer_without_an_id_belongs_to_a_call_that_no_other_answer_names():
    calls = [*TWO, {"id": "c3", "function": {"name": "sub"}}]
    given = [{"name": "sub", "content": "three"}, {"content": "one"}, {"tool_call_id": "c2", "content": "two"}]
    assert [content for content, _, _ in answered(*given, calls=calls)] == ["one", "two", "three"]
    assert [content for content, _, _ in answered(*given[:2], calls=calls)] == ["three", "one"], "as the data has them"


def test_what_is_one_answer_too_many_stays_behind_those_that_name_their_calls():
    given = [
        {"content": "too many"},
        {"tool_call_id": "c2", "content": "two"},
        {"tool_call_id": "c1", "content": "one"},
    ]
    assert [content for content, _, _ in answered(*given)] == ["one", "two", "too many"]


def test_ids_may_be_whole_numbers_and_those_of_answers_to_an_only_call_without_one_say_nothing():
    calls = [{**call, "id": number} for number, call in enumerate(TWO)]
    given = [{"tool_call_id": 1, "content": "two"}, {"tool_call_id": 0, "content": "one"}]
    assert answered(*given, calls=calls) == [("one", "add", "0"), ("two", "add", "1")]
    assert answered({"tool_call_id": "x", "content": "one"}, calls=[{"name": "add"}]) == [("one", "add", None)]


def test_ids_are_no_content_and_the_pairing_is():
    def told(ids, *order):
        calls = [{"id": one, "function": {"name": "add", "arguments": {"a": n}}} for n, one in enumerate(ids)]
        answers = [{"role": "tool", "tool_call_id": ids[n], "content": content} for n, content in order]
        return openai({**SAID, "tool_calls": calls}, *answers, SAID)

    one = told(("c1", "c2"), (0, "one"), (1, "two"))
    assert told(("k7", "k8"), (1, "two"), (0, "one")).id == one.id
    assert told(("c1", "c2"), (1, "one"), (0, "two")).id != one.id


def test_a_completion_answers_the_calls_of_its_prompt():
    row = parse_row(
        {
            "prompt": [ASKED, {"role": "assistant", "tool_calls": TWO}],
            "completion": [
                {"role": "tool", "tool_call_id": "c2", "content": "two"},
                {"role": "tool", "tool_call_id": "c1", "content": "one"},
                SAID,
            ],
        },
        "prompt_completion",
        "all",
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
        ([{**TWO[0], "id": "\ud83d"}], [], "has half of a surrogate pair in messages[1].tool_calls[0].id, which is no"),
    ],
)
def test_ids_that_pair_nothing_are_refused(calls, answers, what):
    turns = [{"role": "tool", "content": "3", **answer} for answer in answers]
    assert refused(openai, {**SAID, "tool_calls": calls}, *turns, SAID).startswith(what)


def deep(levels, inner=1):
    for _ in range(levels):
        inner = {"a": inner}
    return inner


@pytest.mark.parametrize(
    ("messages", "more", "what"),
    [
        ([{**SAID, "tool_calls": [{"name": "a", "arguments": deep(65)}]}], {}, "is nested deeper than 64 levels in "),
        ([SAID], {"tools": [{"name": "a", "parameters": [deep(64)]}]}, "is nested deeper than 64 levels in tools[0]"),
        (
            [{**SAID, "tool_calls": [CALL]}, {"role": "tool", "content": deep(3000)}, SAID],
            {},
            "is nested deeper than 64 levels in messages[2].content",
        ),
        (
            [{**SAID, "tool_calls": [CALL]}, {"role": "tool", "content": {"x": b"1"}}, SAID],
            {},
            "has a value in messages[2].content that JSON cannot hold: Object of type bytes",
        ),
        (
            [{**SAID, "tool_calls": [{"name": "a", "arguments": {"x": float("nan")}}]}],
            {},
            "has a call or a tool that JSON",
        ),
        (
            [{**SAID, "tool_calls": [{"name": "a", "arguments": '{"b": 1, "x": 1, "c": 2, "x": 3}'}]}],
            {},
            "names the key 'x' twice in messages[1].tool_calls[0].arguments",
        ),
    ],
)
def test_what_no_tool_would_take_is_refused(messages, more, what):
    assert refused(openai, *messages, **more).startswith(what)


def test_a_call_may_be_nested_as_deep_as_anybody_means_to():
    row = openai({**SAID, "tool_calls": [{"name": "a", "arguments": deep(64)}]})
    assert row.messages[-1].tool_calls[0].arguments == deep(64)


def test_a_conversation_may_end_with_a_call_and_a_call_may_be_written_the_older_way():
    last = openai({"role": "assistant", "content": None, "function_call": {"name": "add", "arguments": ""}})
    assert last.messages[-1] == Message("assistant", "", tool_calls=(ToolCall("add", {}),))


@pytest.mark.parametrize("given", [None, "", " ", "[]", []])
def test_no_tools_may_be_written_in_many_ways(given):
    assert parse_tools(given) == ()


@pytest.mark.parametrize(
    ("given", "what"),
    [
        ("[{", "has text in 'tools' that is not JSON: '[{'"),
        ({"add": {}}, "has 'tools' that are an object, not an array"),
        ([{"description": "Adds."}], "has a tool without a name in tools[0]"),
        (["add"], "has a tool without a name in tools[0]"),
    ],
)
def test_tools_that_are_none_are_refused(given, what):
    assert refused(parse_tools, given) == what


@pytest.mark.parametrize(
    ("messages", "what"),
    [
        ([{**SAID, "tool_calls": "[{"}], "has text in messages[1].tool_calls that is not JSON: '[{'"),
        ([{**SAID, "tool_calls": {"name": "a"}}], "has an object in messages[1].tool_calls, not an array of calls"),
        ([{**SAID, "tool_calls": [1]}], "has a call without a name in messages[1].tool_calls[0]"),
        ([{**SAID, "tool_calls": [{"name": " "}]}], "has a call without a name in messages[1].tool_calls[0]"),
        (
            [{**SAID, "tool_calls": [{"name": "a", "arguments": "[1]"}]}],
            "has an array in messages[1].tool_calls[0].arguments, not an object",
        ),
        (
            [{**SAID, "tool_calls": [{"name": "a", "arguments": "{'x': 1}"}]}],
            "has text in messages[1].tool_calls[0].arguments that is not JSON: \"{'x': 1}\"",
        ),
        (
            [{**SAID, "tool_calls": [CALL]}, {"role": "tool", "tool_call_id": "c9", "content": "3"}, SAID],
            "answers the call 'c9' in messages[2], and the turn before has no such call",
        ),
        (
            [{**SAID, "tool_calls": [CALL]}, {"role": "tool", "tool_call_id": ["c1"], "content": "3"}, SAID],
            "has an array in messages[2].tool_call_id, not text",
        ),
        (
            [{**SAID, "tool_calls": [CALL], "function_call": {"name": "b", "arguments": "{}"}}],
            "has 'tool_calls' and 'function_call' in messages[1]",
        ),
        ([SAID, {**ASKED, "tool_calls": [CALL]}, SAID], "has a call in messages[2], which is the user's turn"),
        (
            [SAID, {**ASKED, "function_call": {"name": "b"}}, SAID],
            "has a call in messages[2], which is the user's turn",
        ),
        (
            [{**SAID, "tool_calls": [CALL]}, {"role": "tool", "name": 3, "content": "3"}, SAID],
            "has the value 3 in messages[2].name, not text",
        ),
        ([{**SAID, "tool_calls": [CALL]}, {"role": "tool", "content": "3"}, ASKED], "has no response"),
        (
            [{**SAID, "tool_calls": [CALL]}, {"role": "tool", "content": "3"}, ASKED, SAID],
            "has turn 4 from the user where the assistant speaks",
        ),
        (
            [{**SAID, "content": "\ud83d", "tool_calls": [CALL]}],
            "has half of a surrogate pair, which is no character",
        ),
        (
            [{**SAID, "tool_calls": [{"name": "a", "arguments": {"x": "\ud83d"}}]}],
            "has half of a surrogate pair, which is no character",
        ),
        ([{**SAID, "tool_calls": [{"name": "a", "arguments": {"x": b"1"}}]}], "has a call or a tool that JSON cannot"),
    ],
)
def test_calls_that_are_none_are_refused(messages, what):
    assert refused(openai, *messages).startswith(what)


@pytest.mark.parametrize(
    ("value", "what"),
    [
        ("[]", "has no call in conversations[1].value"),
        ("add(1, 2)", "has text in conversations[1].value that is not JSON: 'add(1, 2)'"),
        ('{"arguments": {}}', "has a call without a name in conversations[1].value"),
    ],
)
def test_a_turn_of_calls_that_holds_none_is_refused(value, what):
    assert refused(sharegpt, ("human", "?"), ("function_call", value)) == what


def test_every_part_of_a_call_and_of_the_tools_is_part_of_the_content():
    def told(name="add", arguments=None, answer="add", offered=(TOOL,)):
        calls = [{"name": name, "arguments": arguments or {"a": 1, "b": 2}}]
        said = {"role": "assistant", "content": None, "tool_calls": calls}
        return openai(said, {"role": "tool", "name": answer, "content": "3"}, SAID, tools=list(offered))

    ids = {
        told().id, told(name="sub").id, told(arguments={"a": 1}).id, told(answer="sub").id, told(offered=()).id,
        told(offered=({**TOOL, "description": "Sums."},)).id,
    }  # fmt: skip
    assert len(ids) == 6
    assert told().id == told(arguments={"b": 2, "a": 1}).id
    assert prompt_hash(told()) == prompt_hash(told(offered=())) != prompt_hash(told(name="sub"))


# -- speakers and contents --------------------------------------------------------------------------------------------


def test_a_developer_is_the_system_and_contents_may_be_parts_of_text():
    parts = [{"type": "text", "text": "1 +"}, {"type": "text", "text": " 2?"}]
    row = [{"role": "developer", "content": "Be brief."}, {"role": "user", "content": parts}, SAID]
    found = parse_messages(row, "messages", "role", "content")
    assert [(message.role, message.content) for message in found][:2] == [("system", "Be brief."), ("user", "1 + 2?")]
    picture = [{"type": "text", "text": "What is it?"}, {"type": "image_url", "image_url": {}}]
    what = refused(parse_messages, [{"role": "user", "content": picture}], "messages", "role", "content")
    assert what == "has a part of the type 'image_url' in messages[0].content"


# -- what is trained --------------------------------------------------------------------------------------------------


def trained(*flags, train_on="all"):
    messages = [one for flag in flags for one in (ASKED, {**SAID, **flag})]
    row = parse_row({"messages": messages}, "messages", train_on, "x:1")
    return [message.train for message in row.messages if message.role == "assistant"]


def test_a_message_says_itself_whether_it_is_trained():
    assert trained({"train": False}, {"weight": 1}, {"weight": 0}, {"weight": None}) == [False, True, False, True]
    assert trained({"train": True, "weight": 1.0}, {"train": False, "weight": 0}) == [True, False]
    assert trained({}, {}, train_on="last") == [False, True]
    assert trained({"weight": 0, "train": None}, {"train": True}, train_on="last") == [False, True]


@pytest.mark.parametrize(
    ("flag", "what"),
    [
        ({"weight": 0.5}, "has the value 0.5 in messages[1].weight"),
        ({"weight": 2}, "has the value 2 in messages[1].weight"),
        ({"weight": True}, "has the value True in messages[1].weight"),
        ({"weight": "1"}, "has the value 1 in messages[1].weight"),
        ({"train": 1}, "has the value 1 in messages[1].train"),
        ({"train": True, "weight": 0}, "has 'train' and 'weight' in messages[1] that say opposite things"),
        ({"train": False}, "has nothing to train: no response is flagged as trained"),
    ],
)
def test_a_flag_that_is_none_and_a_row_in_which_nothing_is_trained_are_refused(flag, what):
    assert refused(trained, flag) == what


def test_the_last_response_alone_with_a_flag_against_it_leaves_nothing_to_train():
    assert "has nothing to train" in refused(trained, {}, {"weight": 0}, train_on="last")


def test_only_responses_can_be_flagged_as_trained():
    said = [{**ASKED, "train": True}, SAID]
    assert (
        refused(parse_messages, said, "messages", "role", "content")
        == "flags the user's turn in messages[0] as trained"
    )
    assert parse_messages([{**ASKED, "weight": 0}, SAID], "messages", "role", "content")[0] == Message("user", "1 + 2?")


def test_which_turns_are_trained_is_no_content():
    messages = [Message("user", "a"), Message("assistant", "b"), Message("user", "c"), Message("assistant", "d")]
    other = [*messages[:1], Message("assistant", "b", train=False), *messages[2:]]
    assert build_example(messages, "x").id == build_example(other, "y").id == example_id(messages)
