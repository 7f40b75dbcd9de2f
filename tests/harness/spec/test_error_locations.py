"""Errors of the data name file, line and column of the key that causes them."""

from __future__ import annotations

import json

import pytest

from harness.cli.main import main
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


@pytest.mark.parametrize("command", ["validate", "check", "run"])
def test_every_command_locates_a_missing_file_and_a_wrong_column(command, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    document = {
        "name": "located",
        "model": {"path": "./tiny"},
        "template": "chatml",
        "sources": {"desk": {"csv": {"path": "desk.csv", "columns": {"instruction": "question", "output": "reply"}}}},
        "mode": {"domain": {"sources": ["desk"]}},
        "train": {"epochs": 1, "batch_size": 1, "learning_rate": 1e-4, "max_length": 64},
        "evaluate": {},
    }
    (tmp_path / "spec.json").write_text(json.dumps(document, indent=1))
    from harness.testing.tiny_model import build_tiny_model, build_tokenizer

    build_tiny_model(build_tokenizer()).save_pretrained(tmp_path / "tiny")
    build_tokenizer().save_pretrained(tmp_path / "tiny")
    assert main([command, "spec.json"]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()[-1:]
    assert line == (
        "harness: spec.json:10:5 sources.desk.csv.path: desk.csv: there is no such file; check the source's path"
    )
    (tmp_path / "desk.csv").write_text("question,answer\n" + "What?,That.\n" * 4)
    assert main([command, "spec.json"]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()[-1:]
    assert line.startswith("harness: spec.json:8:3 sources.desk: columns names 'reply' as the data's column")
