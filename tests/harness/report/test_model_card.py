"""The model card of a finished run: front matter, method, scores, forgetting, data, licences, spec and loading."""

from __future__ import annotations

import json

import pytest
import yaml
from support import example_run

from harness.interfaces.exporter import LOADING_HEADING, ExportSource
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


def test_half_of_a_surrogate_pair_in_a_damaged_spec_is_escaped(run):
    spec = json.loads((run / "spec.json").read_text())
    (run / "spec.json").write_text(json.dumps({**spec, "checks": {"a": "\ud800"}}))
    assert '"a": "\\ud800"' in write_model_card(run).read_text()


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


def set_in_spec(run, *path, value):
    spec = json.loads((run / "spec.json").read_text())
    section = spec
    for key in path[:-1]:
        section = section.setdefault(key, {})
    section[path[-1]] = value
    (run / "spec.json").write_text(json.dumps(spec))


def write_base_card(folder, front_matter):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "README.md").write_text(front_matter)


@pytest.mark.parametrize("has_adapter", [True, False])
@pytest.mark.parametrize("kind", ["folder", "run", "hub", "hub revision"])
def test_the_license_is_that_of_the_base_model_wherever_it_is(run, tmp_path, monkeypatch, kind, has_adapter):
    if not has_adapter:
        (run / "model" / "adapter_config.json").unlink()
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    cache = tmp_path / "hub/models--org--base"
    path, folder = {
        "folder": (str(tmp_path / "base"), tmp_path / "base"),
        "run": (f"run:{tmp_path}/earlier", tmp_path / "earlier/model"),
        "hub": ("org/base", cache / "snapshots/c0ffee"),
        "hub revision": ("org/base", cache / "snapshots/decaf"),
    }[kind]
    set_in_spec(run, "model", "path", value=path)
    if kind == "hub":
        (cache / "refs").mkdir(parents=True)
        (cache / "refs" / "main").write_text("c0ffee")
    if kind == "hub revision":
        set_in_spec(run, "model", "revision", value="decaf")
    assert "- base model: see the page of the base model" in write_model_card(run).read_text()
    write_base_card(folder, "---\nlanguage: en\nlicense: apache-2.0\n---\n# base\nlicense: mit\n")
    for _ in range(2):  # the second card is written beside the first one
        text = write_model_card(run).read_text()
        assert 'license: "apache-2.0"' in text.split("---\n")[1]
        assert "- base model: apache-2.0\n" in text


@pytest.mark.parametrize(
    ("front_matter", "expected", "shown"),
    [
        ('---\r\nlicense: "mit"  # free\r\n---\r\n', {"license": "mit"}, "mit"),
        ("---\nlicense:\n- mit\n- apache-2.0\n---\n", {"license": ["mit", "apache-2.0"]}, "mit, apache-2.0"),
        (
            "---\nlicense: other\nlicense_name: qwen\nlicense_link: https://x/LICENSE\n---\n",
            {"license": "other", "license_name": "qwen", "license_link": "https://x/LICENSE"},
            "other (qwen, https://x/LICENSE)",
        ),
        ("---\nlanguage: en\n---\nlicense: mit\n", {}, None),
        ("license: mit\n", {}, None),
        ("---\nlicense: [mit\n---\n", {}, None),
        ("---\nlicense: {a: b}\n---\n", {}, None),
        ("---\nlicense: [2024-01-01]\n---\n", {}, None),
        ("---\nlicense: other\nlicense_name: 2024-01-01\n---\n", {"license": "other"}, "other"),
        ("---\n- license\n---\n", {}, None),
    ],
)
def test_the_license_is_read_as_the_hub_writes_it(run, tmp_path, front_matter, expected, shown):
    set_in_spec(run, "model", "path", value=str(tmp_path / "base"))
    write_base_card(tmp_path / "base", front_matter)
    text = write_model_card(run).read_text()
    fields = yaml.safe_load(text.split("---\n")[1])
    assert {key: value for key, value in fields.items() if key.startswith("license")} == expected
    line = next(line for line in text.splitlines() if line.startswith("- base model: "))
    assert line.replace("\\", "") == f"- base model: {shown or 'see the page of the base model'}"


@pytest.mark.parametrize("path", ["pypi:pkg==1/model.gguf#sha256=00", "base", ""])
def test_the_license_is_never_that_of_a_file_in_the_working_folder(run, tmp_path, monkeypatch, path):
    """An adapter of a converted model has no path of its base."""
    write_base_card(tmp_path / "work", "---\nlicense: mit\n---\n")
    write_base_card(tmp_path / "work/base", "---\nlicense: mit\n---\n")
    (run / "model" / "adapter_config.json").write_text('{"base_model_name_or_path": ""}')
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    set_in_spec(run, "model", "path", value=path)
    assert "- base model: see the page of the base model" in write_model_card(run).read_text()


@pytest.mark.parametrize(
    ("saved", "words"),
    [("other", "keeps the chat template of the base model"), ("none", "has no chat template"), ("same", None)],
)
def test_the_card_warns_of_another_chat_template_than_that_of_the_run(run, saved, words):
    (run / "model" / "template.json").write_text(json.dumps({"chat_template": saved}))
    text = write_model_card(run).read_text()
    assert write_model_card(run).read_text() == text
    warnings = [line for line in text.splitlines() if line.startswith("> **Warning**")]
    if words is None:
        assert warnings == []
        return
    (line,) = warnings
    assert words in line
    assert "the run trained with `chatml`" in line
    assert "`harness export mixed-sft-1 --to merged`" in line
    assert LOADING_HEADING in text.split(line)[0]


def test_an_export_does_not_repeat_the_warning(run, tmp_path):
    (run / "model" / "template.json").write_text('{"chat_template": "other"}')
    source = ExportSource("x", run / "model", write_model_card(run).read_text(), "", None, (), "", None, str)
    source.write_card(tmp_path, "load it")
    card = (tmp_path / "README.md").read_text()
    assert "load it" in card
    assert "## Scores" in card
    assert "**Warning**" not in card


@pytest.mark.parametrize(("kind", "shown"), [("cuda", "precision: float32 with tf32"), ("cpu", "precision: float32}")])
def test_tf32_is_shown_where_it_was_used(run, kind, shown):
    set_in_spec(run, "train", "precision", value="float32")
    set_in_spec(run, "train", "tf32", value=True)
    environment = json.loads((run / "environment.json").read_text())
    (run / "environment.json").write_text(json.dumps({**environment, "device": {"kind": kind}}))
    assert shown in write_model_card(run).read_text()


def test_a_run_without_a_model_has_no_card(tmp_path):
    assert write_model_card(tmp_path) is None
