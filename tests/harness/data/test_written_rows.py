"""The record of rows that a model has written."""

from __future__ import annotations

import pytest

from harness.data.reading.corpus import build_corpus
from harness.data.written_rows import (
    count_rejected,
    load_written_rows,
    rows_from_json,
    rows_to_json,
    save_written_rows,
    validate_written_rows,
)
from harness.errors import RunError
from harness.types import Example, InvalidRecord, Message, ToolCall

CALL = ToolCall("weather", {"city": "Bonn"}, "1")
ROWS = [
    Example(
        "0" * 16, (Message("user", "茶?", input="x"), Message("assistant", "a\u2028b")), "a.jsonl:1", data={"t": None}
    ),
    InvalidRecord("a.jsonl:2", "empty", raw=""),
    Example(
        "1" * 16,
        (
            Message("system", "s"),
            Message("user", "u"),
            Message("assistant", "", tool_calls=(CALL,), train=False),
            Message("tool", "r", name="weather", tool_call_id="1"),
            Message("assistant", "a", reasoning="because"),
        ),
        "a.jsonl:3",
        tools=({"name": "weather"},),
        choices=("a", "b"),
        groups=(("document", "d"),),
    ),
]


def test_rows_are_read_back_as_they_were_written(tmp_path):
    file = tmp_path / "mixing" / "chat.jsonl"
    save_written_rows(file, ROWS)
    assert load_written_rows(file) == [ROWS[0], ROWS[2], ROWS[1]]
    assert rows_from_json(rows_to_json(ROWS)) == ROWS
    assert count_rejected(ROWS) == {"empty": 1}


def test_without_a_record_there_are_no_rows(tmp_path):
    assert load_written_rows(tmp_path / "chat.jsonl") is None


@pytest.mark.parametrize(
    "text", ["{", "[]\n", '{"id": "0"}\n', '{"id": "0", "location": "x", "messages": [{"a": 1}]}\n']
)
def test_a_damaged_record_is_named_with_the_remedy(tmp_path, text):
    file = tmp_path / "chat.jsonl"
    save_written_rows(file, ROWS)
    file.write_text(text)
    with pytest.raises(RunError, match="delete this file, and the rows are written again"):
        load_written_rows(file)


def test_the_id_of_a_row_is_that_of_its_content():
    (row,) = validate_written_rows([ROWS[0]], "mixing")
    assert isinstance(row, Example)
    assert row.id != ROWS[0].id
    assert row.data == {"t": None}
    assert [example.id for example in build_corpus("chat", [row])] == [row.id]
