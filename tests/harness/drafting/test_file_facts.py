"""What `harness init` finds in a file: encoding, delimiter, columns, row format, language, duplicates, groups."""

from __future__ import annotations

import csv
import io
import json

import pytest

from harness.drafting.file_facts import detect_encoding, inspect_file
from harness.errors import HarnessError
from harness.registry import discover_plugins

ENGLISH = [(f"Where is order {number}?", f"Order {number} is on its way.") for number in range(20)]
CHINESE = [(f"订单{number}在哪里？", f"您好，订单{number}已经发货，请耐心等待。") for number in range(20)]


@pytest.fixture(scope="module")
def registry():
    return discover_plugins()


def table(rows, header, delimiter=","):
    stream = io.StringIO()
    csv.writer(stream, delimiter=delimiter, lineterminator="\n").writerows([header, *rows])
    return stream.getvalue()


@pytest.mark.parametrize(
    ("rows", "encoding", "options"),
    [
        (ENGLISH, "utf-8", {}),
        (CHINESE, "utf-8", {}),
        (CHINESE, "utf-8-sig", {}),
        (CHINESE, "utf-16", {}),
        (CHINESE, "gbk", {"encoding": "gb18030"}),
        ([("Wo ist Müllers Gerät?", "Es kommt früh.")] * 20, "cp1252", {"encoding": "cp1252"}),
    ],
)
@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_encodings_and_delimiters_of_csv_files(registry, tmp_path, rows, encoding, options, delimiter):
    file = tmp_path / "rows.csv"
    file.write_bytes(table(rows, ("Question", "Answer"), delimiter).encode(encoding))
    facts = inspect_file(registry, file)
    assert facts.options == {**options, **({} if delimiter == "," else {"delimiter": delimiter})}
    assert facts.rows == 20
    assert facts.mapping == {"instruction": "Question", "output": "Answer"}
    assert [message.content for message in facts.examples[0].messages] == list(rows[0])


@pytest.mark.parametrize(
    ("row", "form", "mapping"),
    [
        ({"instruction": "a", "output": "b"}, "alpaca", {}),
        ({"prompt": "a", "completion": "b"}, "prompt_completion", {}),
        ({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}, "messages", {}),
        ({"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]}, "sharegpt", {}),
        ({"客户问题": "在哪里？", "客服回复": "在这里。"}, "alpaca", {"instruction": "客户问题", "output": "客服回复"}),
        ({"问题": "在哪里？", "答案": "在这里。"}, "alpaca", {"instruction": "问题", "output": "答案"}),
        ({"Ticket": "a", "Resolution": "b"}, "alpaca", {"instruction": "Ticket", "output": "Resolution"}),
    ],
)
def test_row_formats_and_columns(registry, tmp_path, row, form, mapping):
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps(row) + "\n")
    facts = inspect_file(registry, file)
    assert (facts.form, facts.mapping, facts.guessed) == (form, mapping, False)


def test_unknown_columns_are_guessed_from_their_lengths(registry, tmp_path):
    file = tmp_path / "rows.csv"
    file.write_text(table([("a1", *row) for row in ENGLISH], ("code", "first", "second")))
    facts = inspect_file(registry, file)
    assert facts.mapping == {"instruction": "first", "output": "second"}
    assert facts.guessed
    named = inspect_file(registry, file, {"instruction": "second", "output": "first"})
    assert named.mapping == {"instruction": "second", "output": "first"}
    assert not named.guessed


@pytest.mark.parametrize(("rows", "language"), [(ENGLISH, "en"), (CHINESE, "zh"), ([("どこですか", "ここです")], "ja")])
def test_languages(registry, tmp_path, rows, language):
    file = tmp_path / "rows.csv"
    file.write_text(table(rows, ("question", "answer")), encoding="utf-8")
    assert inspect_file(registry, file).language == language


def test_duplicates_invalid_rows_and_groups(registry, tmp_path):
    rows = [(f"C{number % 12}", f"2026-01-{number % 28 + 1:02d}", *row) for number, row in enumerate(ENGLISH)]
    rows += [rows[0], (*rows[1][:3], "Another answer."), (*rows[2][:3], " ")]
    file = tmp_path / "rows.csv"
    file.write_text(table(rows, ("Customer ID", "created", "question", "answer")))
    facts = inspect_file(registry, file)
    assert facts.duplicates == 1
    assert facts.invalid[0] == 1
    assert facts.invalid[1].startswith(f"{file}:24 has no response")
    assert facts.groups == {"Customer ID": 12}


def test_rows_that_cannot_be_read_are_counted(registry, tmp_path):
    file = tmp_path / "rows.csv"
    file.write_text("question,answer\n" + "Where is it?,Here.\n" * 3 + "Where, is it?,There, I think.\n" * 2)
    facts = inspect_file(registry, file)
    assert (facts.rows, len(facts.examples)) == (5, 3)
    assert facts.invalid[0] == 2
    assert facts.invalid[1].startswith(f"{file}:5 ")
    with file.open("a") as stream:
        stream.write("Where, is it?,There, I think.\n" * 2)
    with pytest.raises(HarnessError, match=r"4 of 7 rows cannot be used, e.g. .*:5 has 4 fields.*; correct the file"):
        inspect_file(registry, file)


def test_a_folder_is_not_a_missing_file(registry, tmp_path):
    with pytest.raises(HarnessError, match="it is a folder; name its files"):
        inspect_file(registry, tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("rows.xlsx", b"PK", "its format is unknown"),
        ("rows.csv", b"", "no rows|empty"),
        ("rows.csv", b"a,b\n1,2\n", "no column is known as a prompt or a response"),
        ("rows.jsonl", '{"问题": "订单在哪里，请问？"}'.encode("gbk"), "the file is in gb18030, and JSON is UTF-8"),
        ("rows.jsonl", b"{\n", "is not JSON"),
        ("rows.csv", b"ticket_id,customer_id,question\nT1,C1,Where is it?\nT2,C1,Is it here?\n", "no column is known"),
        ("rows.csv", b"Hi where is my new lamp?,It is on its way.\nIs it red?,No it is not.\n", "not the names of col"),
    ],
)  # fmt: skip
def test_a_file_that_cannot_be_used_is_one_line(registry, tmp_path, name, content, message):
    file = tmp_path / name
    file.write_bytes(content)
    with pytest.raises(HarnessError, match=message) as error:
        inspect_file(registry, file)
    assert error.value.hint
    assert len(error.value.lines()) == 1


def test_a_character_at_the_end_of_the_sample_may_be_incomplete():
    assert detect_encoding("订单".encode()[:-1]) is None
    assert detect_encoding("订单在哪里，请问一下".encode("gbk")[:-1]) == "gb18030"
