"""Checksums of files are cached and follow every change."""

from __future__ import annotations

import hashlib
import os

from harness.utils import file_digests


def write_large_file(path, fill: bytes) -> None:
    path.write_bytes(fill * file_digests._MIN_CACHED_SIZE)


def test_large_file_is_hashed_once_and_again_after_a_change(tmp_path, recorder):
    file = tmp_path / "w.safetensors"
    write_large_file(file, b"a")
    first = file_digests.digest_file(file, recorder)
    assert first == hashlib.sha256(file.read_bytes()).hexdigest()
    assert recorder.calls[-1][:3] == ("hash", file_digests._MIN_CACHED_SIZE, file_digests._MIN_CACHED_SIZE)
    recorder.calls.clear()
    assert file_digests.digest_file(file, recorder) == first
    assert not recorder.calls
    times = file.stat().st_atime_ns, file.stat().st_mtime_ns
    write_large_file(file, b"b")
    os.utime(file, ns=times)  # the modification time is set back, as unpackers do: the change time still differs
    assert file_digests.digest_file(file, recorder) == hashlib.sha256(file.read_bytes()).hexdigest() != first


def test_damaged_or_unwritable_cache_file_only_costs_a_hash(tmp_path, cache_root, monkeypatch):
    file = tmp_path / "w.safetensors"
    write_large_file(file, b"a")
    first = file_digests.digest_file(file)
    (cache_file,) = (cache_root / "digests").iterdir()
    cache_file.write_text("{")
    assert file_digests.digest_file(file) == first
    (tmp_path / "blocked").touch()
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / "blocked"))
    assert file_digests.digest_file(file) == first
