"""Commands name the line of the spec in errors of its data."""

from __future__ import annotations

import json

import pytest

from harness.cli.main import main
from harness.testing.tiny_model import build_tiny_model, build_tokenizer


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
