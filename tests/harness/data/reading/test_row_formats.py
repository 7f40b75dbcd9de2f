import re
from pathlib import Path

import pytest

from harness.data.reading import source_reader
from harness.data.reading.conversation import example_id, prompt_hash
from harness.data.reading.corpus import read_examples
from harness.errors import HarnessError
from harness.interfaces.source import Source
from harness.spec_keys import data
from harness.types import InvalidRecord, Message, Record

ALPACA = {"instruction": "Name a colour.", "input": "", "output": "Red."}
MESSAGES = {"messages": [{"role": "user", "content": "Name a colour."}, {"role": "assistant", "content": "Red."}]}
SHAREGPT = {"conversations": [{"from": "human", "value": "Name a colour."}, {"from": "gpt", "value": "Red."}]}
PROMPT = {"prompt": "Name a colour.", "completion": "Red."}
SHARED = Path(__file__).parents[4].parent / "shared" / "data"


DEFAULTS = {key: option["default"] for key, option in data.SOURCE_KEYS.items()}


class Rows(Source):
    def __init__(self, rows):
        self.rows = rows

    def records(self):
        for number, row in enumerate(self.rows, 1):
            yield row if isinstance(row, InvalidRecord) else Record(f"x.jsonl:{number}", row)


def read(*rows, **options):
    return read_examples(Rows(rows), {**DEFAULTS, **options}, "x")


def turns(*rows, **options):
    (example,) = read(*rows, **options)
    return [(message.role, message.content) for message in example.messages]


def refused(*rows, **options):
    with pytest.raises(HarnessError) as caught:
        read(*rows, **options)
    return str(caught.value)


@pytest.mark.parametrize("row", [ALPACA, MESSAGES, SHAREGPT, PROMPT])
def test_every_form_becomes_the_same_conversation_with_the_same_id(row):
    assert turns({**row, "fact": "f001"}) == [("user", "Name a colour."), ("assistant", "Red.")]
    assert read(row)[0].id == read(ALPACA)[0].id
    assert read(row)[0].location == "x.jsonl:1"


def test_an_alpaca_row_keeps_its_input_apart_unless_it_is_blank():
    assert read({**ALPACA, "input": "as hex"})[0].messages[0] == Message("user", "Name a colour.", "as hex")
    for blank in ("", " \n", None):
        assert read({**ALPACA, "input": blank})[0].messages[0].input is None


def test_an_alpaca_row_may_have_a_system_message_and_a_history():
    row = {**ALPACA, "system": "Be brief.", "history": [["Hi", "Hello."], ["Who?", "Me."]]}
    assert [content for _, content in turns(row)] == [
        "Be brief.", "Hi", "Hello.", "Who?", "Me.", "Name a colour.", "Red.",
    ]  # fmt: skip
    assert len(turns({**ALPACA, "system": " ", "history": None})) == 2


def test_prompt_and_completion_may_be_messages():
    row = {"prompt": [{"role": "system", "content": "Be brief."}, *MESSAGES["messages"][:1]], "completion": "Red."}
    assert turns(row)[0] == ("system", "Be brief.")
    assert turns({"prompt": "Name a colour.", "completion": MESSAGES["messages"][1:]}) == turns(PROMPT)


def test_columns_name_where_the_parts_of_a_form_stand():
    row = {"question": "Name a colour.", "answer": "Red.", "input": "not the question's"}
    columns = {"instruction": "question", "output": "answer"}
    assert turns(row, columns=columns)[0] == ("user", "Name a colour.")
    swapped = {"instruction": "Red.", "output": "Name a colour."}
    assert turns(swapped, columns={"instruction": "output", "output": "instruction"})[1] == ("assistant", "Red.")


def test_columns_that_no_form_or_no_row_has_are_refused():
    assert "columns names 'response', which no row form has" in refused(ALPACA, columns={"response": "output"})
    line = refused(ALPACA, columns={"output": "answer"})
    assert "no row has it; x.jsonl:1 has instruction, input, output" in line


def test_a_column_for_a_name_that_the_form_has_not_is_refused():
    line = refused({**MESSAGES, "context": "a"}, columns={"input": "context"})
    assert "columns names 'context' as the data's column for 'input', which the form messages has not" in line


def test_a_rows_own_system_message_stands_before_its_messages():
    first = ("system", "Be brief.")
    for given in (MESSAGES, SHAREGPT):
        assert turns({**given, "system": "Be brief."}) == [first, *turns(given)]
    told = {"messages": [{"role": "system", "content": "Be brief."}, *MESSAGES["messages"]]}
    assert turns({**told, "system": "Be brief."}) == turns(told)
    assert "has a system message that is not its first message" in refused({**told, "system": "Be long."})


def test_an_unknown_form_is_told_with_the_rows_keys_and_what_the_forms_need():
    line = refused({"question": "a", "answer": "b"})
    assert line.startswith("sources.x: the form of its rows is unknown: x.jsonl:1 has the keys question, answer;")
    assert "alpaca needs instruction, output" in line
    assert '"columns"' in line


def test_a_text_is_told_only_where_no_conversation_is():
    (example,) = read({"text": "Once upon a time."})
    assert example.messages == (Message("text", "Once upon a time."),)
    assert turns({**ALPACA, "text": "### Instruction: …"}) == turns(ALPACA)
    assert turns({**ALPACA, "text": "a"}, form="text") == [("text", "a")]
    assert turns({"body": "a"}, columns={"text": "body"}) == [("text", "a")]


def test_rows_that_fit_two_forms_need_the_form_named():
    both = {**PROMPT, **MESSAGES}
    assert "the rows can be read as messages and as prompt_completion" in refused(both)
    assert turns(both, form="messages") == turns(PROMPT)


def test_rows_of_several_forms_in_one_source_are_refused():
    assert "x.jsonl:1 is alpaca, x.jsonl:3 is sharegpt" in refused(ALPACA, ALPACA, SHAREGPT)


def test_a_row_without_the_forms_keys_is_named_when_the_others_have_them():
    assert refused(ALPACA, {"instruction": "a"}).startswith("x.jsonl:2: has no response: no 'output'")


def test_the_form_is_told_from_the_first_rows_and_every_later_one_is_held_against_it(monkeypatch):
    monkeypatch.setattr(source_reader, "ROWS_FOR_DETECTION", 2)
    line = refused(ALPACA, ALPACA, ALPACA, SHAREGPT)
    assert line == (
        "x.jsonl:4: is of the form sharegpt, and this source's rows are alpaca: no 'instruction'; "
        "make each form a source of its own"
    )
    bad = InvalidRecord("x.jsonl:0", "is not JSON")
    assert len(read(*[bad] * 5, ALPACA, rejected=0.9)) == 1
    assert refused(*[bad] * 5, rejected=0.9).startswith("x.jsonl:0: is not JSON")


def test_a_column_that_no_form_needs_may_come_after_the_first_rows_but_must_come(monkeypatch):
    monkeypatch.setattr(source_reader, "ROWS_FOR_DETECTION", 1)
    assert len(read(ALPACA, {**ALPACA, "persona": "Be brief."}, columns={"system": "persona"})) == 2
    assert "names 'persona' as the data's column for 'system', and no row has it" in refused(
        ALPACA, ALPACA, columns={"system": "persona"}
    )


def test_the_first_five_bad_rows_are_named_and_the_others_counted():
    lines = refused(ALPACA, *[{**ALPACA, "output": ""}] * 8).splitlines()
    assert len(lines) == 6
    assert lines[0].startswith("x.jsonl:2: has no response: it is blank")
    assert lines[-1] == "sources.x: and 3 more bad rows, of 9 rows"


def says(*speakers):
    return {"messages": [{"role": role, "content": "a"} for role in speakers]}


@pytest.mark.parametrize(
    ("row", "what"),
    [
        ({**ALPACA, "output": " \n"}, "has no response: it is blank"),
        ({**ALPACA, "output": None}, "has no response: it is blank"),
        ({**ALPACA, "output": ["Red."]}, "has an array in 'output', not text"),
        ({**ALPACA, "instruction": 3}, "has the value 3 in 'instruction', not text"),
        ({**ALPACA, "instruction": ""}, "has nothing in turn 1, the user's"),
        ({**ALPACA, "history": ["Hi"]}, "has a 'history' that is not an array of pairs"),
        ({**ALPACA, "history": [["Hi", ""]]}, "has nothing in turn 2, the assistant's"),
        ({**ALPACA, "output": "\ud83d"}, "has half of a surrogate pair"),
        ({"messages": "Hi"}, "has a 'messages' that is the value Hi, not an array"),
        ({"messages": []}, "has no response"),
        ({"messages": ["Hi"]}, "has no 'role' in messages[0]"),
        ({"messages": [{"from": "human", "value": "Hi"}]}, "has no 'role' in messages[0]; its keys are those of"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "has an array in messages[0].content"),
        (says("user"), "has no response: its last turn is the user's"),
        (says("user", "user", "assistant"), "has turn 2 from the user where the assistant speaks"),
        (says("assistant", "user", "assistant"), "has turn 1 from the assistant where the user speaks"),
        (says("user", "system", "assistant"), "has a system message that is not its first"),
        (says("system", "assistant"), "has turn 1 from the assistant where the user speaks"),
        (says("user", "narrator", "assistant"), "has the unknown role 'narrator' in messages[1]"),
        (says("user", "tool", "assistant"), "has turn 2 from a tool, and the turn before calls none"),
        (says("user", "assistant", "tool", "assistant"), "has turn 3 from a tool, and the turn before calls none"),
        ({"text": " \n\u3000"}, "has a text of white space alone"),
        ({"text": None}, "has a text of white space alone"),
        ({"text": ["a"]}, "has an array in 'text', not text"),
    ],
)
def test_a_row_that_is_no_conversation_is_named_with_the_reason(row, what):
    assert refused(row).startswith(f"x.jsonl:1: {what}")


def test_a_source_without_rows_is_an_error():
    assert refused() == "sources.x: the data set holds no rows; give it at least one"


def test_an_id_is_of_the_exact_text_however_its_characters_are_composed():
    assert example_id([Message("user", "caf\u00e9")]) == example_id([Message("user", "cafe\u0301")])
    assert example_id([Message("user", "a b")]) != example_id([Message("user", "a  b")])
    assert example_id([Message("user", "a")]) != example_id([Message("assistant", "a")])
    assert example_id([Message("user", "a", "b")]) == example_id([Message("user", "a\n\nb")])
    assert re.fullmatch("[0-9a-f]{16}", example_id([Message("user", "a")]))


def test_a_prompts_hash_leaves_out_the_response_and_counts_runs_of_white_space_once():
    (first,), (second,) = read(ALPACA), read({**ALPACA, "instruction": " Name  a\ncolour.", "output": "Blue."})
    assert prompt_hash(first) == prompt_hash(second)
    assert first.id != second.id
    assert prompt_hash(first) != prompt_hash(read({**ALPACA, "input": "b"})[0])


def test_the_hashes_of_rows_without_tools_are_those_of_earlier_versions():
    (row,) = read({**ALPACA, "system": "Be brief.", "input": "as hex", "history": [["Hé", "Hello."]]})
    assert (row.id, prompt_hash(row)) == ("676591d0e1c80347", "92bcd2ec2f66fd1b")


def test_the_prompt_of_a_text_is_all_of_it():
    (first, second, third) = read({"text": "a  b"}, {"text": "a b"}, {"text": "a c"})
    assert first.id != second.id
    assert prompt_hash(first) == prompt_hash(second) != prompt_hash(third)


@pytest.mark.parametrize("form", [ALPACA, MESSAGES, SHAREGPT, PROMPT])
def test_only_the_last_response_is_trained_where_that_is_asked_for(form):
    assert [message.train for message in read(form, train_on="last")[0].messages] == [True, True]
    row = {**ALPACA, "history": [["Hi", "Hello."]]}
    for train_on, trained in {"all": [True, True], "last": [False, True]}.items():
        (example,) = read(row, train_on=train_on)
        assert [message.train for message in example.messages if message.role == "assistant"] == trained


def test_the_responses_in_a_prompt_are_not_trained():
    before = [*MESSAGES["messages"], {"role": "user", "content": "And another?"}]
    (example,) = read({"prompt": before, "completion": "Blue."})
    assert [message.train for message in example.messages if message.role == "assistant"] == [False, True]


@pytest.mark.skipif(not SHARED.exists(), reason="the data beside the repository is absent")
@pytest.mark.parametrize(
    ("name", "rows", "calls"),
    [("alpaca_en_demo", 1000, 0), ("alpaca_zh_demo", 1000, 0), ("glaive_toolcall_en_demo", 300, 211)],
)
def test_public_data_is_read_whole_with_all_its_calls(name, rows, calls):
    from harness_sources.json_sources import JsonSource

    read = read_examples(JsonSource(str(SHARED / f"{name}.json"), {}), {**DEFAULTS, "rejected": 0.01}, "x")
    assert rows * 0.99 <= len(read) <= rows
    assert sum(len(message.tool_calls) for example in read for message in example.messages) == calls
    assert sum(message.role == "tool" for example in read for message in example.messages) == calls
