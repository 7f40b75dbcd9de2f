"""`harness validate` reads the first rows of local text files, and rejects only what a run would reject."""

from __future__ import annotations

import json

import pytest

from harness import registry
from harness.data.reading.first_rows import NUM_ROWS, first_row_errors, reads_local_text
from harness.errors import HarnessError
from harness.interfaces.source import Source
from harness.spec import schema
from harness.types import InvalidRecord, Record

GOOD = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}


class Rows(Source):
    """Yields rows; a text is an invalid row."""

    def __init__(self, *rows):
        self.rows = rows

    def records(self):
        for number, row in enumerate(self.rows, start=1):
            yield (
                InvalidRecord(f"x.jsonl:{number}", row, "fix it")
                if isinstance(row, str)
                else Record(f"x:{number}", row)
            )


@pytest.fixture(scope="module")
def source_options():
    """Return the options of a JSONL source, with all defaults."""
    composed = schema.compose_schema(registry.discover_plugins())
    document = {
        "name": "x", "model": {"path": "m"}, "template": "chatml", "sources": {"x": {"jsonl": {"path": "x.jsonl"}}},
        "mode": {"general": {"sources": ["x"]}},
    }  # fmt: skip
    return schema.fill_defaults(document, composed, composed)["sources"]["x"]["jsonl"]


def errors(source, options, **changes):
    return [error.what for error in first_row_errors("x", source, {**options, **changes})]


def test_good_rows_have_no_error_and_few_are_used(source_options):
    assert errors(Rows(*[GOOD] * 5000), source_options) == []


def test_a_row_without_a_known_column_is_an_error(source_options):
    (what,) = errors(Rows({"frage": "a", "antwort": "b"}), source_options)
    assert "frage" in what or "row format" in what


def test_an_invalid_row_is_an_error_unless_the_source_allows_some(source_options):
    rows = Rows("is not JSON", GOOD)
    assert errors(rows, source_options) == ["is not JSON"]
    assert errors(rows, source_options, rejected=0.5) == []


def test_rows_that_a_filter_may_drop_are_not_judged(source_options):
    assert errors(Rows({"lang": "de"}), source_options, filter={"lang": "en"}) == []


def test_an_optional_column_may_come_later(source_options):
    later = Rows(*[GOOD] * NUM_ROWS, {**GOOD, "werkzeuge": []})
    assert errors(later, source_options, columns={"tools": "werkzeuge"}) == []


def test_a_source_that_cannot_be_read_is_an_error(source_options):
    class Missing(Source):
        def records(self):
            raise HarnessError("x.jsonl", "there is no such file", "check the source's path")
            yield

    assert errors(Missing(), source_options) == ["there is no such file"]
    assert errors(Missing(), source_options, filter={"lang": "en"}) == ["there is no such file"]


@pytest.mark.parametrize(
    ("kind", "path", "expected"),
    [
        ("jsonl", "a.jsonl", True),
        ("csv", ["a.csv", "b.csv"], True),
        ("jsonl", "s3://bucket/a.jsonl", False),
        ("parquet", "a.parquet", False),
        ("mine", None, False),
    ],
)
def test_only_local_text_files_are_read(kind, path, expected):
    assert reads_local_text(kind, {"path": path}) is expected


def test_validate_names_a_missing_file(tmp_path, capsys):
    from harness.cli.main import main

    document = {
        "name": "x", "model": {"path": "m"}, "template": "chatml", "sources": {"x": {"jsonl": {"path": "x.jsonl"}}},
        "mode": {"general": {"sources": ["x"]}},
    }  # fmt: skip
    (tmp_path / "spec.json").write_text(json.dumps(document))
    assert main(["validate", str(tmp_path / "spec.json")]) == 2
    assert "x.jsonl: there is no such file" in capsys.readouterr().err
