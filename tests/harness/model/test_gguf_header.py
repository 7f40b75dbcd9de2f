"""The header of a GGUF file is read without other packages."""

from __future__ import annotations

import struct

import pytest

from harness.errors import HarnessError
from harness.model import gguf_header
from harness.model.locate import resolve_model


def test_header_has_architecture_tensor_names_and_parameter_count(gguf_source):
    header = gguf_header.read_gguf_header(gguf_source)
    assert header.architecture == "llama"
    assert len(header.tensor_names) == 11
    # embeddings + q, o + k, v + three of the feed-forward + three norms
    assert header.parameter_count == 260 * 32 + 2 * 32 * 32 + 2 * 16 * 32 + 3 * 64 * 32 + 3 * 32


@pytest.mark.parametrize("size", [3, 20, 100, 2000])
def test_file_truncated_anywhere_in_its_header_is_an_error(gguf_source, tmp_path, size):
    (tmp_path / "truncated.gguf").write_bytes(gguf_source.read_bytes()[:size])
    with pytest.raises(HarnessError, match=r"is not a readable GGUF file"):
        gguf_header.read_gguf_header(tmp_path / "truncated.gguf")


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"<html>not found</html>", "does not start with 'GGUF'"),
        (b"GGUF" + struct.pack("<IQQ", 1, 0, 0), "format version is 1"),
        (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "format version is"),  # big-endian
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 0), "does not name its architecture"),
        (b"GGUF" + struct.pack("<IQQ", 3, 1 << 60, 0), "damaged or truncated"),
        (b"GGUF" + struct.pack("<IQQQ1sI", 3, 0, 1, 1, b"k", 99), "damaged or truncated"),  # an unknown type of value
    ],
)
def test_file_that_is_not_gguf_is_an_error_with_the_reason(tmp_path, data, reason):
    (tmp_path / "x.gguf").write_bytes(data)
    with pytest.raises(HarnessError, match=reason):
        resolve_model({"path": str(tmp_path / "x.gguf")})


def test_unreadable_file_is_an_error(tmp_path):
    (tmp_path / "x.gguf").mkdir()
    with pytest.raises(HarnessError, match=r"cannot be read"):
        gguf_header.read_gguf_header(tmp_path / "x.gguf")
