from __future__ import annotations

import hashlib
import os

from harness.utils import file_digests


def big(path, fill: bytes) -> None:
    path.write_bytes(fill * file_digests._MIN_CACHED_SIZE)


def test_a_large_file_is_hashed_once_and_again_when_it_changes(tmp_path, watch):
    file = tmp_path / "w.safetensors"
    big(file, b"a")
    first = file_digests.digest_file(file, watch)
    assert first == hashlib.sha256(file.read_bytes()).hexdigest()
    assert watch.calls[-1][:3] == ("hash", file_digests._MIN_CACHED_SIZE, file_digests._MIN_CACHED_SIZE)
    watch.calls.clear()
    assert file_digests.digest_file(file, watch) == first
    assert not watch.calls
    times = file.stat().st_atime_ns, file.stat().st_mtime_ns
    big(file, b"b")
    os.utime(file, ns=times)  # the modification time set back, as by an unpacker: the change time still tells
    assert file_digests.digest_file(file, watch) == hashlib.sha256(file.read_bytes()).hexdigest() != first


def test_a_note_that_is_damaged_or_cannot_be_written_costs_a_hash_and_nothing_else(tmp_path, cache_root, monkeypatch):
    file = tmp_path / "w.safetensors"
    big(file, b"a")
    first = file_digests.digest_file(file)
    (note,) = (cache_root / "digests").iterdir()
    note.write_text("{")
    assert file_digests.digest_file(file) == first
    (tmp_path / "blocked").touch()
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / "blocked"))
    assert file_digests.digest_file(file) == first
