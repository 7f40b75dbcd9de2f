"""Row formats: detection, columns, invalid rows and content hashes."""

import json
import re

import pytest
from support.paths import ROOT

from harness.data.reading import source_reader
from harness.data.reading.conversation import example_id, prompt_hashes
from harness.data.reading.corpus import read_examples
from harness.errors import HarnessError
from harness.interfaces.source import Source
from harness.spec_keys import data
from harness.types import InvalidRecord, Message, Record

ALPACA = {"instruction": "Name a colour.", "input": "", "output": "Red."}
MESSAGES = {"messages": [{"role": "user", "content": "Name a colour."}, {"role": "assistant", "content": "Red."}]}
SHAREGPT = {"conversations": [{"from": "human", "value": "Name a colour."}, {"from": "gpt", "value": "Red."}]}
PROMPT = {"prompt": "Name a colour.", "completion": "Red."}


DEFAULTS = {key: option["default"] for key, option in data.SOURCE_KEYS.items()}


class ListSource(Source):
    """Yields the given rows."""

    def __init__(self, rows):
        self.rows = rows

    def records(self):
        for line, row in enumerate(self.rows, 1):
            yield row if isinstance(row, InvalidRecord) else Record(f"x.jsonl:{line}", row)


def read_rows(*rows, **options):
    return read_examples(ListSource(rows), {**DEFAULTS, **options}, "x")


def read_turns(*rows, **options):
    (example,) = read_rows(*rows, **options)
    return [(message.role, message.content) for message in example.messages]


def reading_error(*rows, **options):
    with pytest.raises(HarnessError) as caught:
        read_rows(*rows, **options)
    return str(caught.value)


@pytest.mark.parametrize("row", [ALPACA, MESSAGES, SHAREGPT, PROMPT])
def test_every_format_becomes_the_same_conversation_with_the_same_id(row):
    assert read_turns({**row, "fact": "f001"}) == [("user", "Name a colour."), ("assistant", "Red.")]
    assert read_rows(row)[0].id == read_rows(ALPACA)[0].id
    assert read_rows(row)[0].location == "x.jsonl:1"


def test_alpaca_input_is_separate_unless_it_is_blank():
    assert read_rows({**ALPACA, "input": "as hex"})[0].messages[0] == Message("user", "Name a colour.", "as hex")
    for blank in ("", " \n", None):
        assert read_rows({**ALPACA, "input": blank})[0].messages[0].input is None


def test_alpaca_row_may_have_a_system_message_and_a_history():
    row = {**ALPACA, "system": "Be brief.", "history": [["Hi", "Hello."], ["Who?", "Me."]]}
    assert [content for _, content in read_turns(row)] == [
        "Be brief.", "Hi", "Hello.", "Who?", "Me.", "Name a colour.", "Red.",
    ]  # fmt: skip
    assert len(read_turns({**ALPACA, "system": " ", "history": None})) == 2


def test_prompt_and_completion_may_be_messages():
    row = {"prompt": [{"role": "system", "content": "Be brief."}, *MESSAGES["messages"][:1]], "completion": "Red."}
    assert read_turns(row)[0] == ("system", "Be brief.")
    assert read_turns({"prompt": "Name a colour.", "completion": MESSAGES["messages"][1:]}) == read_turns(PROMPT)


def test_columns_map_the_columns_of_the_data_to_standard_names():
    row = {"question": "Name a colour.", "answer": "Red.", "input": "not the question's"}
    columns = {"instruction": "question", "output": "answer"}
    assert read_turns(row, columns=columns)[0] == ("user", "Name a colour.")
    swapped = {"instruction": "Red.", "output": "Name a colour."}
    assert read_turns(swapped, columns={"instruction": "output", "output": "instruction"})[1] == ("assistant", "Red.")


def test_columns_that_no_format_or_no_row_has_are_refused():
    assert "columns names 'response', which no row format has" in reading_error(ALPACA, columns={"response": "output"})
    line = reading_error(ALPACA, columns={"output": "answer"})
    assert "no row has it; x.jsonl:1 has instruction, input, output" in line


def test_column_for_a_name_outside_the_format_is_refused():
    line = reading_error({**MESSAGES, "context": "a"}, columns={"input": "context"})
    assert (
        "columns names 'context' as the data's column for 'input', which the row format messages does not have" in line
    )


def test_system_column_comes_before_the_messages():
    first = ("system", "Be brief.")
    for row in (MESSAGES, SHAREGPT):
        assert read_turns({**row, "system": "Be brief."}) == [first, *read_turns(row)]
    with_system = {"messages": [{"role": "system", "content": "Be brief."}, *MESSAGES["messages"]]}
    assert read_turns({**with_system, "system": "Be brief."}) == read_turns(with_system)
    assert "has a system message that is not its first message" in reading_error({**with_system, "system": "Be long."})


def test_unknown_format_error_names_the_keys_and_what_each_format_needs():
    line = reading_error({"question": "a", "answer": "b"})
    assert line.startswith("sources.x: its row format is unknown: x.jsonl:1 has the keys question, answer;")
    assert "alpaca needs instruction, output" in line
    assert '"columns"' in line


def test_text_format_is_detected_only_without_a_conversation():
    (example,) = read_rows({"text": "Once upon a time."})
    assert example.messages == (Message("text", "Once upon a time."),)
    assert read_turns({**ALPACA, "text": "### Instruction: …"}) == read_turns(ALPACA)
    assert read_turns({**ALPACA, "text": "a"}, form="text") == [("text", "a")]
    assert read_turns({"body": "a"}, columns={"text": "body"}) == [("text", "a")]


def test_rows_that_fit_two_formats_need_the_format_set():
    row = {**PROMPT, **MESSAGES}
    assert "the rows fit several row formats: messages and prompt_completion" in reading_error(row)
    assert read_turns(row, form="messages") == read_turns(PROMPT)


def test_rows_of_several_formats_in_one_source_are_refused():
    assert "x.jsonl:1 is alpaca, x.jsonl:3 is sharegpt" in reading_error(ALPACA, ALPACA, SHAREGPT)


def test_row_without_the_keys_of_the_format_is_named():
    assert reading_error(ALPACA, {"instruction": "a"}).startswith("x.jsonl:2: has no response: no 'output'")


def test_format_is_detected_from_the_first_rows_and_later_rows_must_have_it(monkeypatch):
    monkeypatch.setattr(source_reader, "ROWS_FOR_DETECTION", 2)
    line = reading_error(ALPACA, ALPACA, ALPACA, SHAREGPT)
    assert line == (
        "x.jsonl:4: has the row format sharegpt, but this source's rows are alpaca: no 'instruction'; "
        'split the rows into one source per row format; or drop it: "rejected": 0.25'
    )
    invalid = InvalidRecord("x.jsonl:0", "is not JSON")
    assert len(read_rows(*[invalid] * 5, ALPACA, rejected=0.9)) == 1
    assert reading_error(*[invalid] * 5, rejected=0.9).startswith("x.jsonl:0: is not JSON")


def test_optional_column_may_start_after_the_first_rows_but_must_exist(monkeypatch):
    monkeypatch.setattr(source_reader, "ROWS_FOR_DETECTION", 1)
    assert len(read_rows(ALPACA, {**ALPACA, "persona": "Be brief."}, columns={"system": "persona"})) == 2
    assert "names 'persona' as the data's column for 'system', and no row has it" in reading_error(
        ALPACA, ALPACA, columns={"system": "persona"}
    )


def test_first_five_invalid_rows_are_named_and_the_others_counted():
    lines = reading_error(ALPACA, *[{**ALPACA, "output": ""}] * 8).splitlines()
    assert len(lines) == 6
    assert lines[0].startswith("x.jsonl:2: has no response: it is blank")
    assert lines[-1] == 'sources.x: and 3 more invalid rows, of 9 rows; to drop them set "rejected": 0.889'


def build_turns(*roles):
    return {"messages": [{"role": role, "content": "a"} for role in roles]}


@pytest.mark.parametrize(
    ("row", "what"),
    [
        ({**ALPACA, "output": " \n"}, "has no response: it is blank"),
        ({**ALPACA, "output": None}, "has no response: it is blank"),
        ({**ALPACA, "output": ["Red."]}, "has an array in 'output', not text"),
        ({**ALPACA, "instruction": 3}, "has the value 3 in 'instruction', not text"),
        ({**ALPACA, "instruction": ""}, "has a blank turn 1, the user's"),
        ({**ALPACA, "history": ["Hi"]}, "has a 'history' that is not an array of pairs"),
        ({**ALPACA, "history": [["Hi", ""]]}, "has a blank turn 2, the assistant's"),
        ({**ALPACA, "output": "\ud83d"}, "has half of a surrogate pair"),
        ({"messages": "Hi"}, "has a 'messages' that is the value Hi, not an array"),
        ({"messages": []}, "has no response"),
        ({"messages": ["Hi"]}, "has the value Hi in messages[0], not a message"),
        (
            {"messages": [{"who": "human", "value": "Hi"}]},
            "has no 'role' in messages[0], which has 'who', 'value'; name",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "text"}]}]},
            "has a part that is not text in messages[0].content",
        ),
        (build_turns("user"), "has no response: its last turn is the user's"),
        (build_turns("user", "user", "assistant"), "has turn 2 from the user, expected the assistant"),
        (build_turns("assistant", "user", "assistant"), "has turn 1 from the assistant, expected the user"),
        (build_turns("user", "system", "assistant"), "has a system message that is not its first"),
        (build_turns("system", "assistant"), "has turn 1 from the assistant, expected the user"),
        (build_turns("user", "narrator", "assistant"), "has the unknown role 'narrator' in messages[1]"),
        (build_turns("user", "tool", "assistant"), "has turn 2 from a tool, and the turn before has no calls"),
        (
            build_turns("user", "assistant", "tool", "assistant"),
            "has turn 3 from a tool, and the turn before has no calls",
        ),
        ({"text": " \n\u3000"}, "has a text of white space only"),
        ({"text": None}, "has a text of white space only"),
        ({"text": ["a"]}, "has an array in 'text', not text"),
    ],
)
def test_invalid_conversation_is_named_with_the_reason(row, what):
    assert reading_error(row).startswith(f"x.jsonl:1: {what}")


def test_source_without_rows_is_an_error():
    assert reading_error() == "sources.x: the data set holds no rows; add at least one row, or name other data"


def test_id_depends_on_the_exact_text_and_not_on_composition():
    assert example_id([Message("user", "caf\u00e9")]) == example_id([Message("user", "cafe\u0301")])
    assert example_id([Message("user", "a b")]) != example_id([Message("user", "a  b")])
    assert example_id([Message("user", "a")]) != example_id([Message("assistant", "a")])
    assert example_id([Message("user", "a", "b")]) == example_id([Message("user", "a\n\nb")])
    assert re.fullmatch("[0-9a-f]{16}", example_id([Message("user", "a")]))


def test_prompt_hash_ignores_the_response_and_repeated_white_space():
    (first,), (second,) = (
        read_rows(ALPACA),
        read_rows({**ALPACA, "instruction": " Name  a\ncolour.", "output": "Blue."}),
    )
    assert prompt_hashes(first)[0] == prompt_hashes(second)[0]
    assert first.id != second.id
    assert prompt_hashes(first)[0] != prompt_hashes(read_rows({**ALPACA, "input": "b"})[0])[0]


def test_hashes_of_rows_without_tools_are_stable():
    (row,) = read_rows({**ALPACA, "system": "Be brief.", "input": "as hex", "history": [["Hé", "Hello."]]})
    assert (row.id, prompt_hashes(row)[0]) == ("676591d0e1c80347", "92bcd2ec2f66fd1b")


def test_prompt_of_a_text_is_the_complete_text():
    (first, second, third) = read_rows({"text": "a  b"}, {"text": "a b"}, {"text": "a c"})
    assert first.id != second.id
    assert prompt_hashes(first)[0] == prompt_hashes(second)[0] != prompt_hashes(third)[0]


@pytest.mark.parametrize("row", [ALPACA, MESSAGES, SHAREGPT, PROMPT])
def test_train_on_last_trains_only_the_last_response(row):
    assert [message.train for message in read_rows(row, train_on="last")[0].messages] == [True, True]
    with_history = {**ALPACA, "history": [["Hi", "Hello."]]}
    for train_on, trained in {"all": [True, True], "last": [False, True]}.items():
        (example,) = read_rows(with_history, train_on=train_on)
        assert [message.train for message in example.messages if message.role == "assistant"] == trained


def test_responses_in_a_prompt_are_not_trained():
    prompt = [*MESSAGES["messages"], {"role": "user", "content": "And another?"}]
    (example,) = read_rows({"prompt": prompt, "completion": "Blue."})
    assert [message.train for message in example.messages if message.role == "assistant"] == [False, True]


@pytest.mark.parametrize("name", ["general_train", "helpdesk_train", "lists_train"])
def test_shipped_data_is_read_completely(name):
    from harness_sources.json_sources import JsonlSource

    file = ROOT / "specs" / "data" / f"{name}.jsonl"
    examples = read_examples(JsonlSource(str(file), {}), DEFAULTS, "x")
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert len(examples) == len(rows) > 200
    assert [example.messages[-1].content for example in examples] == [row["output"] for row in rows]


def build_tool_call_rows(count):
    """ShareGPT rows in the style of public tool-call data: every third row has no call, every fifth has two."""
    tools = json.dumps([{"name": "convert", "description": "Converts money.", "parameters": {"type": "object"}}])
    rows = []
    for index in range(count):
        turns = [{"from": "human", "value": f"Convert {index} euros."}]
        for call in range(0 if index % 3 == 0 else 2 if index % 5 == 0 else 1):
            arguments = {"amount": index, "to": f"currency {call}"}
            turns.append({"from": "function_call", "value": json.dumps({"name": "convert", "arguments": arguments})})
            turns.append({"from": "observation", "value": json.dumps({"converted": 2 * index})})
        rows.append({"conversations": [*turns, {"from": "gpt", "value": f"Done: {index}."}], "tools": tools})
    return rows


def test_tool_call_data_is_read_completely_with_all_calls(tmp_path):
    from harness_sources.json_sources import JsonSource

    rows = build_tool_call_rows(300)
    (tmp_path / "calls.json").write_text(json.dumps(rows, indent=2))
    examples = read_examples(JsonSource(str(tmp_path / "calls.json"), {}), {**DEFAULTS, "rejected": 0.01}, "x")
    calls = sum(turn["from"] == "function_call" for row in rows for turn in row["conversations"])
    assert len(examples) == len(rows)
    assert calls == 240
    assert sum(len(message.tool_calls) for example in examples for message in example.messages) == calls
    assert sum(message.role == "tool" for example in examples for message in example.messages) == calls
