"""Rows as public data sets and other tools write them: what is read, what is trained, and what is said of the rest."""

from __future__ import annotations

import json

import pytest

from harness.data.reading.conversation_store import ConversationStore
from harness.data.reading.corpus import read_corpus, read_examples
from harness.data.reading.splits import split_corpus
from harness.errors import HarnessError
from harness.interfaces.source import Source
from harness.spec_keys import data
from harness.types import Record

DEFAULTS = {key: option["default"] for key, option in data.SOURCE_KEYS.items()}
PLAIN = [("user", "2 + 2?"), ("assistant", "4")]
TOOL = {"name": "add", "description": "Adds.", "parameters": {"type": "object", "properties": {}}}


class ListSource(Source):
    """Yields the given rows."""

    def __init__(self, rows):
        self.rows = rows

    def records(self):
        return (Record(f"x.jsonl:{line}", row) for line, row in enumerate(self.rows, 1))


def read_rows(*rows, **options):
    return read_examples(ListSource(rows), {**DEFAULTS, **options}, "x")


def turns(*pairs, role="role", content="content"):
    return [{role: who, content: text} for who, text in pairs]


SHAPES = {
    "alpaca": {"instruction": "2 + 2?", "input": "", "output": "4"},
    "alpaca with only an input": {"instruction": "", "input": "2 + 2?", "output": "4"},
    "messages": {"messages": turns(("user", "2 + 2?"), ("assistant", "4"))},
    "messages as JSON text": {
        "messages": '[{"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": "4"}]'
    },
    "messages of from and value": {"messages": turns(("human", "2 + 2?"), ("gpt", "4"), role="from", content="value")},
    "sharegpt": {"conversations": turns(("human", "2 + 2?"), ("gpt", "4"), role="from", content="value")},
    "sharegpt of role and content": {"conversations": turns(("user", "2 + 2?"), ("assistant", "4"))},
    "sharegpt of role and value": {"conversations": turns(("user", "2 + 2?"), ("assistant", "4"), content="value")},
    "roles in capitals": {"messages": turns(("User", "2 + 2?"), ("ASSISTANT", "4"))},
    "chatgpt": {"conversations": turns(("human", "2 + 2?"), ("chatgpt", "4"), role="from", content="value")},
    "bot": {"messages": turns(("prompter", "2 + 2?"), ("bot", "4"))},
    "ai": {"messages": turns(("human", "2 + 2?"), ("ai", "4"), role="speaker", content="text")},
    "parts of OpenAI": {
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": "2 + "}, {"type": "text", "text": "2?"}]},
            {"role": "assistant", "content": [{"type": "text", "text": "4", "image_url": None}]},
        ]
    },
    "parts of LLaMA-Factory": {
        "messages": [
            {"role": "user", "content": [{"type": "text", "value": "2 + 2?"}]},
            {"role": "assistant", "content": [{"type": "text", "value": "4"}], "loss_weight": 1.0},
        ]
    },
    "prompt and completion": {"prompt": "2 + 2?", "completion": "4"},
    "prompt of messages": {"prompt": turns(("user", "2 + 2?")), "completion": turns(("assistant", "4"))},
}


@pytest.mark.parametrize("name", SHAPES)
def test_row_is_read_as_the_same_conversation(name):
    (example,) = read_rows(SHAPES[name])
    assert [(message.role, message.content) for message in example.messages] == PLAIN
    assert example.messages[-1].train
    assert example.id == read_rows(SHAPES["alpaca"])[0].id


def test_roles_and_keys_of_the_data_are_mapped():
    row = {"dialog": turns(("customer", "2 + 2?"), ("Agent Smith", "4"), role="who", content="says")}
    columns = {"messages": "dialog", "role": "who", "content": "says"}
    (example,) = read_rows(row, columns=columns, roles={"customer": "user", "Agent Smith": "assistant"})
    assert [(message.role, message.content) for message in example.messages] == PLAIN
    with pytest.raises(
        HarnessError, match=r"unknown role 'customer' in messages\[0\].*\"roles\": {\"customer\": \"user\"}"
    ):
        read_rows(row, columns=columns)
    with pytest.raises(HarnessError, match=r"has no 'role' in messages\[0\], which has 'who', 'says'"):
        read_rows(row, columns={"messages": "dialog"})


# -- training flags ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "flag", [{"loss": False}, {"loss_weight": 0.0}, {"loss_weight": 0}, {"weight": 0}, {"train": False}]
)
@pytest.mark.parametrize("names", [("role", "content", "user", "assistant"), ("from", "value", "human", "gpt")])
def test_every_flag_excludes_a_response_from_training(flag, names):
    role, content, user, assistant = names
    question, answer = {role: user, content: "2 + 2?"}, {role: assistant, content: "4"}
    column = "messages" if role == "role" else "conversations"
    (example,) = read_rows({column: [question, {**answer, **flag}, question, answer]})
    assert [message.train for message in example.messages if message.role == "assistant"] == [False, True]


@pytest.mark.parametrize(
    ("flags", "what"),
    [
        ({"loss": 0}, "has the value 0 in messages[1].loss"),
        ({"loss_weight": 0.5}, "has the value 0.5 in messages[1].loss_weight"),
        ({"loss": False, "weight": 1}, "has 'loss' and 'weight' in messages[1] that contradict"),
        ({"train": True, "loss_weight": 0}, "has 'train' and 'loss_weight' in messages[1] that contradict"),
    ],
)
def test_wrong_and_contradicting_flags_are_refused(flags, what):
    question, answer = turns(("user", "2 + 2?"), ("assistant", "4"))
    with pytest.raises(HarnessError) as error:
        read_rows({"messages": [question, {**answer, **flags}]})
    assert str(error.value).startswith(f"x.jsonl:1: {what}")


# -- reasoning --------------------------------------------------------------------------------------------------------


REASONED = (
    {"content": "4", "reasoning_content": "two plus two is four"},
    {"content": "4", "reasoning": "two plus two is four", "thinking": ""},
    {"content": "4", "thinking": "two plus two is four", "reasoning_content": None},
    {"content": [{"type": "reasoning", "value": "two plus two is four"}, {"type": "text", "value": "4"}]},
    {"content": [{"type": "thinking", "thinking": "two plus two is four"}, {"type": "text", "text": "4"}]},
)


@pytest.mark.parametrize("answer", REASONED)
def test_reasoning_is_read_is_content_and_may_be_dropped(answer):
    row = {"messages": [{"role": "user", "content": "2 + 2?"}, {"role": "assistant", **answer}]}
    (example,) = read_rows(row)
    assert (example.messages[1].content, example.messages[1].reasoning) == ("4", "two plus two is four")
    assert example.id != read_rows(SHAPES["alpaca"])[0].id
    (dropped,) = read_rows(row, reasoning="drop")
    assert dropped.id == read_rows(SHAPES["alpaca"])[0].id
    store, _ = ConversationStore.write_examples([example], None)
    assert store[0] == example


@pytest.mark.parametrize(
    ("row", "what"),
    [
        ({"role": "user", "content": "a", "reasoning": "b"}, "has reasoning in messages[0], which is the user's turn"),
        (
            {"role": "assistant", "content": "a", "reasoning": "b", "thinking": "c"},
            "has different reasoning in 'reasoning' and 'thinking' of messages[0]",
        ),
        (
            {"role": "assistant", "content": "a", "reasoning": {"effort": "low"}},
            "has an object in messages[0].reasoning",
        ),
    ],
)
def test_reasoning_that_cannot_be_read_is_refused(row, what):
    with pytest.raises(HarnessError) as error:
        read_rows({"messages": [row, *turns(("user", "2 + 2?"), ("assistant", "4"))]})
    assert str(error.value).startswith(f"x.jsonl:1: {what}")


# -- tools ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        ([{"type": "text", "text": "rain"}], "rain"),
        ([{"type": "text", "value": "rain"}, {"type": "text", "value": "y"}], "rainy"),
        (["rain", "y"], "rainy"),
        ([{"degrees": 3}], '[{"degrees": 3}]'),
        ([{"type": "text", "text": "rain"}, {"degrees": 3}], '[{"type": "text", "text": "rain"}, {"degrees": 3}]'),
        ({"type": "text"}, '{"type": "text"}'),
    ],
)
def test_answer_of_a_tool_in_text_parts_is_its_text(answer, text):
    call = {"role": "assistant", "content": None, "tool_calls": [{"name": "add", "arguments": {}}]}
    row = {
        "messages": [*turns(("user", "?")), call, {"role": "ipython", "content": answer}, *turns(("assistant", "!"))]
    }
    (example,) = read_rows(row)
    assert (example.messages[2].role, example.messages[2].content) == ("tool", text)


TEXT_CALLS = {
    "Hermes": (
        'I look. <tool_call>\n{"name": "add", "arguments": {"a": 1, "b": [true, null]}}\n</tool_call>',
        "I look.", [("add", {"a": 1, "b": [True, None]})],
    ),
    "Hermes of Python": (
        "<tool_call>{'arguments': {'a': \"it's\"}, 'name': 'add'}</tool_call>", "", [("add", {"a": "it's"})],
    ),
    "Hermes, two calls": (
        '<tool_call>{"name": "f", "arguments": {}}</tool_call>\n<tool_call>{"name": "g"}</tool_call>',
        "", [("f", {}), ("g", {})],
    ),
    "ToolACE": (
        '[Market Trends API(kind="A) b", n=-3), now(), f(x=[1, true], y={"k": null})]',
        "", [("Market Trends API", {"kind": "A) b", "n": -3}), ("now", {}), ("f", {"x": [1, True], "y": {"k": None}})],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", TEXT_CALLS)
def test_calls_in_the_text_before_a_tools_turn_are_read(name):
    text, content, calls = TEXT_CALLS[name]
    said, result = {"role": "assistant", "content": text}, {"role": "tool", "content": "3"}
    (example,) = read_rows({"messages": [*turns(("user", "?")), said, result, *turns(("assistant", "3"))]})
    assert (example.messages[1].content, example.messages[1].train) == (content, True)
    assert [(call.name, call.arguments) for call in example.messages[1].tool_calls] == calls
    assert [message.role for message in example.messages] == ["user", "assistant", "tool", "assistant"]


def test_results_between_tags_are_separate_and_texts_without_a_tools_turn_stay():
    text = TEXT_CALLS["Hermes, two calls"][0]
    result = "<tool_response>\n1\n</tool_response>\n<tool_response>2</tool_response>"
    shared = (("human", "?"), ("gpt", text))
    row = {"conversations": turns(*shared, ("tool", result), ("gpt", "!"), role="from", content="value")}
    (example,) = read_rows(row)
    assert [(message.name, message.content) for message in example.messages[2:4]] == [(None, "1"), (None, "2")]
    (plain,) = read_rows({"conversations": turns(*shared, role="from", content="value")})
    assert plain.messages[1].content == text


@pytest.mark.parametrize("text", ["I look.", "[see (1)]", "[add(1, 2)]", "[add(a=b)]", "<tool_call>", "[1, (2)]"])
def test_a_tools_turn_after_a_text_without_calls_is_refused(text):
    messages = turns(("user", "?"), ("assistant", text), ("tool", "3"), ("assistant", "3"))
    with pytest.raises(HarnessError, match=r"has turn 3 from a tool, and the turn before has no calls; .*<tool_call>"):
        read_rows({"messages": messages})
    messages[1]["content"] = "<tool_call>add</tool_call>"
    with pytest.raises(HarnessError, match=r"has text in the <tool_call> before messages\[2\] that is not JSON"):
        read_rows({"messages": messages})


@pytest.mark.parametrize("shape", ["alpaca", "messages", "sharegpt", "prompt and completion"])
def test_functions_are_tools(shape):
    (example,) = read_rows({**SHAPES[shape], "functions": [TOOL]})
    assert example.tools == (TOOL,)
    assert example.id == read_rows({**SHAPES[shape], "tools": [{"type": "function", "function": TOOL}]})[0].id
    with pytest.raises(HarnessError, match="has 'tools' and 'functions'"):
        read_rows({**SHAPES[shape], "functions": [TOOL], "tools": [TOOL]})


# -- what is not read -------------------------------------------------------------------------------------------------


def test_unread_columns_and_message_keys_are_counted_and_known_ones_are_a_warning(tmp_path):
    question, answer = turns(("user", "2 + 2?"), ("assistant", "4"))
    rows = [
        {"messages": [question, {**answer, "mood": "calm", "refusal": None}], "id": 1, "images": []},
        {"messages": [{**question, "content": "3 + 3?"}, answer], "id": 2, "images": ["a.png"]},
        {"messages": [{**question, "content": "1?"}, {**answer, "masked": True}], "chat_template_kwargs": {"x": 1}},
    ]
    corpus = read_corpus(ListSource(rows), DEFAULTS, "x", folder=tmp_path)
    assert corpus.unread_keys == {
        "chat_template_kwargs": 1, "id": 2, "images": 1, "messages.masked": 1, "messages.mood": 1,
    }  # fmt: skip
    assert [warning.split(";")[0] for warning in corpus.warnings] == [
        "sources.x: 1 of 3 rows have 'chat_template_kwargs', which is not read",
        "sources.x: 1 of 3 rows have 'images', which is not read",
        "sources.x: 1 message(s) of 'messages' have 'masked', which is not read",
    ]


def test_columns_that_are_read_are_not_listed(tmp_path):
    rows = [{**SHAPES["alpaca"], "history": [["a", "b"]], "system": "c", "tools": None}]
    corpus = read_corpus(ListSource(rows), DEFAULTS, "x", folder=tmp_path)
    assert (corpus.unread_keys, corpus.warnings) == ({}, ())


# -- order of turns ---------------------------------------------------------------------------------------------------


def read_order(letters, **options):
    """Return the turns of a row: s, u, a (trained), n (an answer that is not trained); with * if they are trained."""
    roles = {"s": "system", "u": "user", "a": "assistant", "n": "assistant"}
    messages = [
        {"role": roles[letter], "content": f"{letter}{index}", **({"train": False} if letter == "n" else {})}
        for index, letter in enumerate(letters)
    ]
    return [
        [message.content + "*" * (message.role == "assistant" and message.train) for message in example.messages]
        for example in read_rows({"messages": messages}, **options)
    ]


@pytest.mark.parametrize(
    ("letters", "options", "rows"),
    [
        ("uau", {"incomplete": "drop"}, [["u0", "a1*"]]),
        ("suauu", {"incomplete": "drop"}, [["s0", "u1", "a2*"]]),
        ("ua", {"incomplete": "drop"}, [["u0", "a1*"]]),
        ("aua", {"first_assistant": "context"}, [["a0", "u1", "a2*"]]),
        ("saua", {"first_assistant": "context"}, [["s0", "a1", "u2", "a3*"]]),
        ("saua", {"first_assistant": "drop"}, [["s0", "u2", "a3*"]]),
        ("uuaa", {"merge_turns": True}, [["u0\nu1", "a2\na3*"]]),
        ("ssua", {"merge_turns": True}, [["s0\ns1", "u2", "a3*"]]),
        ("aauau", {"merge_turns": True, "first_assistant": "drop", "incomplete": "drop"}, [["u2", "a3*"]]),
        ("suasua", {"system": "drop"}, [["u1", "a2*", "u4", "a5*"]]),
        ("suasua", {"system": "drop", "train_on": "each"}, [["u1", "a2*"], ["u1", "a2", "u4", "a5*"]]),
        ("uaua", {"train_on": "last"}, [["u0", "a1", "u2", "a3*"]]),
        ("uaua", {"train_on": "each"}, [["u0", "a1*"], ["u0", "a1", "u2", "a3*"]]),
        ("unuaua", {"train_on": "each"}, [["u0", "n1", "u2", "a3*"], ["u0", "n1", "u2", "a3", "u4", "a5*"]]),
        ("uaun", {"train_on": "each"}, [["u0", "a1*"]]),
    ],
)
def test_options_arrange_the_turns(letters, options, rows):
    assert read_order(letters, **options) == rows


@pytest.mark.parametrize(
    ("letters", "options", "hint"),
    [
        ("uau", {}, '"incomplete": "drop"'),
        ("aua", {}, '"first_assistant": "context"'),
        ("uua", {}, '"merge_turns": true'),
        ("uanu", {"merge_turns": True, "incomplete": "drop"}, "give both the same training flag"),
        ("ua" + "u", {"merge_turns": True}, '"incomplete": "drop"'),
    ],
)
def test_a_wrong_order_names_the_option_that_would_do(letters, options, hint):
    with pytest.raises(HarnessError) as error:
        read_order(letters, **options)
    assert hint in str(error.value)


def test_a_row_without_any_answer_stays_invalid():
    for options in ({}, {"incomplete": "drop"}, {"first_assistant": "drop", "incomplete": "drop"}):
        with pytest.raises(HarnessError, match="has no response") as error:
            read_order("u", **options)
        assert "incomplete" not in str(error.value)


def test_calls_and_reasoning_are_merged_and_results_are_not():
    call = {"role": "assistant", "content": "", "tool_calls": [{"name": "add", "arguments": {}}], "reasoning": "b"}
    result = {"role": "tool", "content": "3"}
    said = {"role": "assistant", "content": "I add.", "reasoning": "a"}
    row = {"messages": [*turns(("user", "?")), said, call, result, result, *turns(("assistant", "3"))]}
    (example,) = read_rows(row, merge_turns=True)
    assert [message.role for message in example.messages] == ["user", "assistant", "tool", "tool", "assistant"]
    merged = example.messages[1]
    assert (merged.content, merged.reasoning, [call.name for call in merged.tool_calls]) == ("I add.", "a\nb", ["add"])


def test_invalid_rows_name_the_share_that_would_drop_them():
    valid, invalid = SHAPES["alpaca"], {**SHAPES["alpaca"], "output": ""}
    with pytest.raises(HarnessError) as error:
        read_rows(*[{**valid, "output": str(number)} for number in range(6)], invalid)
    (line,) = error.value.lines()
    assert line.endswith('; or drop it: "rejected": 0.143')
    assert len(read_rows(*[{**valid, "output": str(number)} for number in range(6)], invalid, rejected=0.143)) == 6


def test_each_response_counts_as_a_row_and_all_are_held_out_together(tmp_path):
    def conversation(number):
        pairs = (("user", f"q{number}"), ("assistant", "a"), ("user", "more"), ("assistant", "b"))
        return {"messages": turns(*pairs)}

    corpus = read_corpus(
        ListSource([conversation(number) for number in range(40)]),
        {**DEFAULTS, "train_on": "each"},
        "x",
        folder=tmp_path,
    )
    assert (corpus.rows_read, len(corpus)) == (80, 80)
    assert len(set(corpus.content_hashes.tolist())) == 80
    split = split_corpus(corpus, held_out=0.5, limit=None, seed=0)
    sides = [{corpus.location_of(index) for index in side} for side in (split.training_indices, split.held_out_indices)]
    assert all(sides)
    assert not sides[0] & sides[1]


def test_conversations_that_begin_alike_with_the_assistant_are_held_out_by_their_question(tmp_path):
    rows = [
        {"messages": turns(("assistant", "Hello!"), ("user", f"q{number}"), ("assistant", "a"))} for number in range(40)
    ]
    corpus = read_corpus(ListSource(rows), {**DEFAULTS, "first_assistant": "context"}, "x", folder=tmp_path)
    assert len(set(corpus.opening_hashes.tolist())) == 40


# -- rows that are refused, with what to write ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("row", "columns"),
    [
        (
            {"instruction": "q", "context": "c", "response": "a", "category": "x"},
            {"output": "response", "input": "context"},
        ),
        (
            {"id": "1", "system_prompt": "s", "question": "q", "response": "a"},
            {"instruction": "question", "output": "response", "system": "system_prompt"},
        ),
        (
            {"conversation_id": "1", "conversation": turns(("user", "q"), ("assistant", "a"))},
            {"messages": "conversation"},
        ),
        ({"question": "q", "answer": "a"}, {"instruction": "question", "output": "answer"}),
        ({"prompt": "q", "response": "a"}, {"instruction": "prompt", "output": "response"}),
        ({"input": "q", "output": "a"}, {"instruction": "input"}),
        ({"document": "d"}, {"text": "document"}),
        ({"prompt": "q", "chosen": "a", "rejected": "b"}, {"instruction": "prompt", "output": "chosen"}),
        (
            {"chosen": turns(("user", "q"), ("assistant", "a")), "rejected": turns(("user", "q"), ("assistant", "b"))},
            {"messages": "chosen"},
        ),
    ],
)
def test_columns_of_public_data_sets_are_computed_into_the_hint(row, columns):
    with pytest.raises(HarnessError) as error:
        read_rows(row)
    line = str(error.value)
    assert ("preference pairs" in line) == ("chosen" in row)
    suggested = json.loads("{" + line[line.index('"columns"') :] + "}")
    assert suggested == {"columns": columns}
    (example,) = read_rows(row, columns=columns)
    assert example.messages[-1].content in ("a", "d")


def test_an_empty_cell_and_values_of_python_are_named():
    with pytest.raises(HarnessError, match=r"has an empty cell in 'output': the value is NaN; drop such rows"):
        read_rows({"instruction": "q", "output": float("nan")})
    with pytest.raises(HarnessError, match=r"it is a value of Python, in single quotes: write it with json.dumps"):
        read_rows({"messages": "[{'role': 'user', 'content': 'q'}]"})
