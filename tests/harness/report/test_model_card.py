"""The model card of a finished run: front matter, method, scores, forgetting, data, licences, spec and loading."""

from __future__ import annotations

import json

import pytest
from support import example_run

from harness.interfaces.exporter import LOADING_HEADING
from harness.report.model_card import write_model_card

SAVED = f"{LOADING_HEADING}\n\n```python\nload()\n```\n"


@pytest.fixture
def run(tmp_path):
    """The folder of a run with an adapter."""
    folder = tmp_path / "mixed-sft-1"
    (folder / "model").mkdir(parents=True)
    example_run.made_report(folder).write(folder)
    spec = {
        "name": "mixed-sft",
        "seed": 7,
        "model": {"path": "org/base"},
        "template": {"chatml": {}},
        "mode": {"mixed": {}},
        "mitigations": {"lora": {"rank": 16, "source": None}},
        "sources": {"desk": {"jsonl": {"path": "/home/me/private/desk.jsonl", "storage": {"secret": "geheim"}}}},
        "train": {"epochs": 2, "learning_rate": 1e-4},
    }
    (folder / "spec.json").write_text(json.dumps(spec))
    data = {"counts": {"desk": {"used": 1200, "held_out": 40}}, "digests": {"desk": "ab" * 32}}
    (folder / "data.json").write_text(json.dumps(data))
    (folder / "environment.json").write_text(
        json.dumps({"harness": "0.2.0", "model": {"digest": "hub:org/base@c0ffee"}})
    )
    (folder / "model" / "adapter_config.json").write_text(
        json.dumps({"base_model_name_or_path": str(tmp_path / "base")})
    )
    (folder / "model" / "README.md").write_text(SAVED)
    return folder


def test_the_card_has_everything_that_a_reader_needs(run):
    text = write_model_card(run).read_text()
    front_matter = text.split("---\n")[1].splitlines()
    assert 'base_model: "org/base"' in front_matter
    assert 'library_name: "peft"' in front_matter
    for part in (
        "hub:org/base@c0ffee", "chatml", "{lora: {rank: 16}}", "learning_rate: 0.0001", "| seed | 7 |",
        "load()", "response\\_perplexity", "## What was forgotten", "1,200", "abababababababab…",
        "base model: see the page of the base model", "harness-sft 0.2.0",
    ):  # fmt: skip
        assert part in text, part
    assert "[" in text.split("## Scores")[1].split("## What")[0]  # an interval


def test_the_card_has_neither_folders_nor_secrets(run):
    text = write_model_card(run).read_text()
    assert "/home/me" not in text
    assert '"path": "desk.jsonl"' in text
    assert "geheim" not in text


def test_a_card_that_is_written_again_is_the_same(run):
    first = write_model_card(run).read_text()
    assert write_model_card(run).read_text() == first
    assert first.count(LOADING_HEADING) == 1


def test_the_lines_of_an_earlier_version_are_kept(run):
    (run / "model" / "README.md").write_text("Load the model:\n\n```python\nold()\n```\n")
    assert f"{LOADING_HEADING}\n\n```python\nold()\n```" in write_model_card(run).read_text()


def test_the_license_of_the_base_model_is_that_of_its_card(run, tmp_path):
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "README.md").write_text("---\nlanguage: en\nlicense: apache-2.0\n---\n# base\nlicense: mit\n")
    text = write_model_card(run).read_text()
    assert 'license: "apache-2.0"' in text.split("---\n")[1]
    assert "- base model: apache-2.0" in text


def test_a_run_without_a_model_has_no_card(tmp_path):
    assert write_model_card(tmp_path) is None
