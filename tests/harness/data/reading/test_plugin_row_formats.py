"""Row formats of plugins: chosen by `form`, with columns, unread keys and invalid rows as for built-in ones."""

from __future__ import annotations

import sys
import types

import pytest

from harness.data.reading.corpus import read_corpus
from harness.data.reading.row_formats import with_row_format
from harness.errors import ComponentError, HarnessError, InvalidRow
from harness.interfaces.component import Component
from harness.interfaces.row_format import RowFormat
from harness.interfaces.source import Source
from harness.registry import Registry
from harness.spec.json_locations import parse_json
from harness.spec.schema import compose_schema, expand_shorthand, fill_defaults
from harness.spec.schema_errors import find_schema_errors
from harness.spec_keys.data import SOURCE_KEYS
from harness.types import Message, Record

DEFAULTS = {key: option["default"] for key, option in SOURCE_KEYS.items()}


class Dialogue(RowFormat):
    """Lines of `log`, the user's and the assistant's in turn."""

    required_keys = ("log",)
    optional_keys = ("tools",)

    def __init__(self, separator):
        self.separator = separator

    def parse_row(self, row):
        if row["log"] == "fault":
            raise KeyError("z")
        if row["log"] == "text":
            return "text"
        lines = row["log"].split(self.separator)
        if len(lines) % 2:
            raise InvalidRow("has an odd number of lines", "add the answer")
        return [Message(("user", "assistant")[index % 2], line) for index, line in enumerate(lines)]


class Rows(Source):
    def __init__(self, rows):
        self.rows = rows

    def records(self):
        for number, row in enumerate(self.rows, 1):
            yield Record(f"a.jsonl:{number}", row)


@pytest.fixture
def registry(monkeypatch):
    """A registry with the row format `dialogue` of harness-acme."""
    module = types.ModuleType("acme_formats")
    module.Dialogue = Dialogue
    monkeypatch.setitem(sys.modules, "acme_formats", module)
    option = {"type": "string", "default": "/", "description": "Between lines."}
    found = Registry()
    found.add(
        "row_formats", "dialogue", Component("D.", "acme_formats:Dialogue", {"separator": option}), "harness-acme"
    )
    return found


@pytest.fixture
def read(registry, tmp_path):
    def read(*rows, **options):
        options = {**DEFAULTS, "form": {"dialogue": {"separator": "/"}}, **options}
        return read_corpus(Rows(rows), with_row_format(options, registry), "desk", folder=tmp_path)

    return read


def test_rows_are_parsed_by_the_format_and_unread_columns_are_counted(read):
    corpus = read({"log": "hi/ho", "id": 1}, {"log": "a/b/c/d", "tools": [], "id": 2})
    assert corpus.row_format == "dialogue"
    assert [[message.content for message in example.messages] for example in corpus.examples] == [
        ["hi", "ho"], ["a", "b", "c", "d"]
    ]  # fmt: skip
    assert corpus.unread_keys == {"id": 2}


def test_columns_and_train_on_apply(read):
    corpus = read({"chat": "a/b/c/d"}, columns={"log": "chat"}, train_on="last")
    (example,) = corpus.examples
    assert [message.train for message in example.messages if message.role == "assistant"] == [False, True]
    with pytest.raises(HarnessError, match="which the row format dialogue does not have"):
        read({"log": "a/b", "x": "y"}, columns={"output": "x"})


def test_invalid_rows_are_counted_and_may_be_allowed(read):
    rows = [{"log": "a/b"}, {"log": "a"}, {"text": "x"}, {"log": "c/d"}]
    assert read(*rows, rejected=0.5).rows_invalid == 2
    with pytest.raises(HarnessError) as caught:
        read(*rows)
    text = str(caught.value)
    assert "a.jsonl:2: has an odd number of lines; add the answer" in text
    assert "a.jsonl:3" in text


@pytest.mark.parametrize(
    ("log", "what"), [("fault", "KeyError: 'z'"), ("text", "returned a str, not a tuple of messages")]
)
def test_a_fault_names_the_format_and_the_row(read, log, what):
    with pytest.raises(ComponentError) as caught:
        read({"log": "a/b"}, {"log": log})
    assert str(caught.value) == f"row format 'dialogue' of harness-acme, parse_row: {what} (row a.jsonl:2)"


@pytest.mark.parametrize("form", ["dialogue", "harness-acme/dialogue", {"dialogue": {}}, {"harness-acme/dialogue": {}}])
def test_a_spec_names_the_format_with_or_without_options(small_registry, small_spec, registry, form):
    component = registry.components["row_formats"]["dialogue"]
    small_registry.add("row_formats", "dialogue", component, "harness-acme")
    schema = compose_schema(small_registry)
    small_spec["sources"]["desk"]["lines"]["form"] = form
    expanded = expand_shorthand(small_spec, schema, schema)
    assert find_schema_errors(expanded, schema, parse_json("{}", "x")) == []
    filled = fill_defaults(expanded, schema, schema)
    assert filled["sources"]["desk"]["lines"]["form"] == {"dialogue": {"separator": "/"}}
    assert filled["sources"]["chat"]["lines"]["form"] == "auto"


def test_the_name_of_a_built_in_format_is_refused(registry):
    with pytest.raises(HarnessError, match="has the name of a key of the core"):
        registry.add("row_formats", "alpaca", registry.components["row_formats"]["dialogue"], "harness-acme")
