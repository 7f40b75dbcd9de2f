"""A file of rows is read as it was written, or it is no file of rows."""

from __future__ import annotations

import errno
import gc
import os

import numpy as np
import pytest

from harness.data.tokenization import token_file
from harness.data.tokenization.token_file import COLUMN_DTYPES, TokenFileWriter, read_token_file

STORED = [np.array([~5, 6, 7, ~1], np.int32), np.array([~2, 3], np.int32)]
NUMBERS = [
    {"ids": [1, 2**64 - 1], "kept": [0, 4], "lengths": [3, 1], "loss_tokens": [2, 0], "cut": [0, 9]},
    {"ids": [3], "kept": [5], "lengths": [2], "loss_tokens": [1], "cut": [0]},
]


def written(folder, path, key="key"):
    writer = TokenFileWriter(folder)
    for stored, numbers in zip(STORED, NUMBERS, strict=True):
        writer.add_rows(stored, numbers)
    contents = writer.to_token_file("source", {"proven": 3})
    writer.save_as(path, key, {"proven": 3})
    return contents


def check(contents):
    rows = contents.rows
    assert [row.input_ids for row in rows] == [(5, 6, 7), (1,), (2, 3)]
    assert [row.labels for row in rows] == [(-100, 6, 7), (-100,), (-100, 3)]
    assert [row.id for row in rows] == ["0" * 15 + "1", "f" * 16, "0" * 15 + "3"]
    assert {row.source for row in rows} == {"source"}
    assert (contents.example_indices.tolist(), contents.tokens_cut.tolist()) == ([0, 4, 5], [0, 9, 0])
    assert rows.loss_tokens.tolist() == [2, 0, 1]
    assert contents.metadata["proven"] == 3


def test_what_is_written_is_read_and_names_its_source_anew(tmp_path):
    path = tmp_path / "x.rows"
    check(written(tmp_path, path))
    check(read_token_file(path, "key", "source"))
    assert {row.source for row in read_token_file(path, "key", "other").rows} == {"other"}
    assert os.listdir(tmp_path) == ["x.rows"]
    umask = os.umask(0)
    os.umask(umask)
    assert path.stat().st_mode & 0o777 == 0o666 & ~umask


def test_no_rows_at_all_are_a_file_too(tmp_path):
    writer = TokenFileWriter(tmp_path)
    assert len(writer.to_token_file("source", {}).rows) == 0
    writer.save_as(tmp_path / "x.rows", "key", {})
    assert len(read_token_file(tmp_path / "x.rows", "key", "source").rows) == 0


def test_every_byte_that_is_changed_or_lost_is_noticed(tmp_path):
    path = tmp_path / "x.rows"
    written(tmp_path, path)
    whole = path.read_bytes()
    for place in range(len(whole)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        found = read_token_file(path, "key", "source")
        # A changed letter in the description may leave it as good as it was, and no other change may.
        assert found is None or found.rows == read_whole(tmp_path, whole)
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        assert read_token_file(path, "key", "source") is None
    path.write_bytes(whole + b"x")
    assert read_token_file(path, "key", "source") is None


def read_whole(folder, whole):
    path = folder / "whole.rows"
    path.write_bytes(whole)
    return read_token_file(path, "key", "source").rows


def test_another_key_and_another_version_are_strangers(tmp_path, monkeypatch):
    path = tmp_path / "x.rows"
    written(tmp_path, path)
    assert read_token_file(path, "other", "source") is None
    assert read_token_file(tmp_path / "none.rows", "key", "source") is None
    monkeypatch.setattr(token_file, "FORMAT_VERSION", token_file.FORMAT_VERSION + 1)
    assert read_token_file(path, "key", "source") is None


def test_a_file_without_a_name_vanishes_and_its_rows_stay(tmp_path):
    writer = TokenFileWriter(tmp_path)
    for stored, numbers in zip(STORED, NUMBERS, strict=True):
        writer.add_rows(stored, numbers)
    assert len(os.listdir(tmp_path)) == 1
    contents = writer.to_token_file("source", {"proven": 3})
    del writer
    gc.collect()
    assert os.listdir(tmp_path) == []
    check(contents)


@pytest.mark.parametrize("failing", [0, 1])
@pytest.mark.parametrize("partly", [False, True])
def test_what_a_full_disk_does_not_take_is_held_in_memory(failing, partly, tmp_path, monkeypatch):
    calls, real = [], os.write

    def write(file, data):
        calls.append(len(data))
        if len(calls) > failing:
            if partly and len(calls) == failing + 1:
                return real(file, data[:3])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(file, data)

    writer = TokenFileWriter(tmp_path)
    monkeypatch.setattr(os, "write", write)
    for stored, numbers in zip(STORED, NUMBERS, strict=True):
        writer.add_rows(stored, numbers)
    assert writer.write_error == "No space left on device"
    assert writer.has_rows_in_memory
    check(writer.to_token_file("source", {"proven": 3}))
    with pytest.raises(OSError, match="No space left"):
        writer.save_as(tmp_path / "x.rows", "key", {})
    assert not (tmp_path / "x.rows").exists()


def test_a_folder_that_takes_no_file_leaves_the_rows_in_memory(tmp_path):
    writer = TokenFileWriter(tmp_path / "absent")
    assert writer.write_error
    for stored, numbers in zip(STORED, NUMBERS, strict=True):
        writer.add_rows(stored, numbers)
    check(writer.to_token_file("source", {"proven": 3}))


def test_a_file_that_cannot_be_finished_leaves_its_rows_readable(tmp_path):
    writer = TokenFileWriter(tmp_path)
    for stored, numbers in zip(STORED, NUMBERS, strict=True):
        writer.add_rows(stored, numbers)
    with pytest.raises(OSError, match="No such file"):
        writer.save_as(tmp_path / "absent" / "x.rows", "key", {})
    check(writer.to_token_file("source", {"proven": 3}))
    assert set(NUMBERS[0]) == set(COLUMN_DTYPES)
