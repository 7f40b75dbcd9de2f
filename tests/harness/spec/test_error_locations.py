"""Errors of the data name file, line and column of the key that causes them."""

from __future__ import annotations

import json

import pytest

from harness.errors import HarnessError, ManyErrors, RunError
from harness.spec.error_locations import locate_error, locate_errors
from harness.spec.json_locations import parse_json
from harness.spec.spec import Spec

TEXT = """{
 "sources": {
  "desk": {"csv": {"path": "desk.csv"}},
  "desk.old": {"jsonl": {"path": ["a.jsonl",
    "b.jsonl"], "held_out": 0.1}}
 },
 "evaluate": {"desk": {"source": "desk"}},
 "checks": {"near_duplicates": {"allowed": 0}},
 "train": {"max_length": 8}
}"""


@pytest.fixture
def spec(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    document = json.loads(TEXT) | {"mitigations": {}}
    document["sources"]["desk"]["csv"]["path"] = str(tmp_path / "desk.csv")
    document["sources"]["desk.old"]["jsonl"]["path"] = [str(tmp_path / "a.jsonl"), str(tmp_path / "b.jsonl")]
    return Spec(tmp_path / "spec.json", document, {}, parse_json(TEXT, "spec.json"))


@pytest.mark.parametrize(
    ("where", "located"),
    [
        ("sources.desk", "spec.json:3:3 sources.desk"),
        ("sources.desk.old", "spec.json:4:3 sources.desk.old"),
        ("sources.desk.old.held_out", "spec.json:5:17 sources.desk.old.jsonl.held_out"),
        ("sources.desk.held_out", "spec.json:3:12 sources.desk.csv.held_out"),
        ("evaluate.desk", "spec.json:7:15 evaluate.desk"),
        ("checks.near_duplicates", "spec.json:8:13 checks.near_duplicates"),
        ("train.max_length", "spec.json:9:12 train.max_length"),
        ("desk.csv", "spec.json:3:20 sources.desk.csv.path: desk.csv"),
        ("b.jsonl", "spec.json:5:5 sources.desk.old.jsonl.path.1: b.jsonl"),
    ],
)
def test_a_key_or_file_has_its_line_and_column(spec, where, located):
    error = locate_error(spec, HarnessError(where, "is wrong", "change it"))
    assert error.lines() == [f"{located}: is wrong; change it"]


@pytest.mark.parametrize("where", ["desk.csv:7", "c.csv", "sources.other", "output: runs", "sources"])
def test_other_places_stay_as_they_are(spec, where):
    assert locate_error(spec, HarnessError(where, "is wrong")).where == where


def test_each_of_many_errors_is_located_and_a_failed_run_is_not(spec):
    many = ManyErrors([HarnessError("sources.desk", "a"), HarnessError("desk.csv:2", "b")])
    assert locate_error(spec, many).lines() == ["spec.json:3:3 sources.desk: a", "desk.csv:2: b"]
    failed = RunError("sources.desk", "no memory")
    with pytest.raises(RunError) as caught, locate_errors(spec):
        raise failed
    assert caught.value is failed
