from __future__ import annotations

import struct

import pytest

from harness.errors import HarnessError
from harness.model import gguf_header
from harness.model.locate import resolve_model


def test_the_header_gives_architecture_tensors_and_weights(gguf_source):
    header = gguf_header.read_gguf_header(gguf_source)
    assert header.architecture == "llama"
    assert len(header.tensor_names) == 11
    # embeddings + q, o + k, v + three of the feed-forward + three norms
    assert header.parameter_count == 260 * 32 + 2 * 32 * 32 + 2 * 16 * 32 + 3 * 64 * 32 + 3 * 32


@pytest.mark.parametrize("keep", [3, 20, 100, 2000])
def test_a_file_cut_off_in_its_header_is_an_error_at_any_place(gguf_source, tmp_path, keep):
    (tmp_path / "cut.gguf").write_bytes(gguf_source.read_bytes()[:keep])
    with pytest.raises(HarnessError, match=r"is no GGUF file that can be read"):
        gguf_header.read_gguf_header(tmp_path / "cut.gguf")


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"<html>not found</html>", "does not begin with 'GGUF'"),
        (b"GGUF" + struct.pack("<IQQ", 1, 0, 0), "format version is 1"),
        (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "format version is"),  # big-endian
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 0), "names no architecture"),
        (b"GGUF" + struct.pack("<IQQ", 3, 1 << 60, 0), "damaged or cut off"),
        (b"GGUF" + struct.pack("<IQQQ1sI", 3, 0, 1, 1, b"k", 99), "damaged or cut off"),  # an unknown type of value
    ],
)
def test_what_is_no_gguf_file_is_an_error_with_the_reason(tmp_path, data, why):
    (tmp_path / "x.gguf").write_bytes(data)
    with pytest.raises(HarnessError, match=why):
        resolve_model({"path": str(tmp_path / "x.gguf")})


def test_a_file_that_may_not_be_read_is_an_error(tmp_path):
    (tmp_path / "x.gguf").mkdir()
    with pytest.raises(HarnessError, match=r"cannot be read"):
        gguf_header.read_gguf_header(tmp_path / "x.gguf")
