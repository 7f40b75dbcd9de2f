"""A token file is read as it was written, or rejected."""

from __future__ import annotations

import errno
import gc
import os

import numpy as np
import pytest

from harness.data.tokenization import token_file
from harness.data.tokenization.token_file import COLUMN_DTYPES, TokenFileWriter, read_token_file

TOKENS = [np.array([~5, 6, 7, ~1], np.int32), np.array([~2, 3], np.int32)]
COLUMNS = [
    {"ids": [1, 2**64 - 1], "example_indices": [0, 4], "lengths": [3, 1], "loss_tokens": [2, 0], "tokens_cut": [0, 9]},
    {"ids": [3], "example_indices": [5], "lengths": [2], "loss_tokens": [1], "tokens_cut": [0]},
]


def write_file(folder, path, key="key"):
    writer = TokenFileWriter(folder)
    for tokens, columns in zip(TOKENS, COLUMNS, strict=True):
        writer.add_rows(tokens, columns)
    written = writer.to_token_file("source", {"proven": 3})
    writer.save_as(path, key, {"proven": 3})
    return written


def assert_content(written):
    rows = written.rows
    assert [row.input_ids for row in rows] == [(5, 6, 7), (1,), (2, 3)]
    assert [row.labels for row in rows] == [(-100, 6, 7), (-100,), (-100, 3)]
    assert [row.id for row in rows] == ["0" * 15 + "1", "f" * 16, "0" * 15 + "3"]
    assert {row.source for row in rows} == {"source"}
    assert (written.example_indices.tolist(), written.tokens_cut.tolist()) == (
        [0, 4, 5],
        [0, 9, 0],
    )
    assert rows.loss_tokens.tolist() == [2, 0, 1]
    assert written.metadata["proven"] == 3


def test_rows_are_read_as_written_with_the_given_source(tmp_path):
    path = tmp_path / "x.rows"
    assert_content(write_file(tmp_path, path))
    assert_content(read_token_file(path, "key", "source"))
    assert {row.source for row in read_token_file(path, "key", "other").rows} == {"other"}
    assert os.listdir(tmp_path) == ["x.rows"]
    umask = os.umask(0)
    os.umask(umask)
    assert path.stat().st_mode & 0o777 == 0o666 & ~umask


def test_file_without_rows_is_valid(tmp_path):
    writer = TokenFileWriter(tmp_path)
    assert len(writer.to_token_file("source", {}).rows) == 0
    writer.save_as(tmp_path / "x.rows", "key", {})
    assert len(read_token_file(tmp_path / "x.rows", "key", "source").rows) == 0


def test_changed_or_missing_bytes_are_detected(tmp_path):
    path = tmp_path / "x.rows"
    write_file(tmp_path, path)
    content = path.read_bytes()
    for position in range(len(content)):
        path.write_bytes(content[:position] + bytes([content[position] ^ 1]) + content[position + 1 :])
        read = read_token_file(path, "key", "source")
        # A changed character in the description may be harmless; any other change must be detected.
        assert read is None or read.rows == read_rows(tmp_path, content)
    for size in range(len(content)):
        path.write_bytes(content[:size])
        assert read_token_file(path, "key", "source") is None
    path.write_bytes(content + b"x")
    assert read_token_file(path, "key", "source") is None


def read_rows(folder, content):
    path = folder / "whole.rows"
    path.write_bytes(content)
    return read_token_file(path, "key", "source").rows


def test_other_key_or_version_is_rejected(tmp_path, monkeypatch):
    path = tmp_path / "x.rows"
    write_file(tmp_path, path)
    assert read_token_file(path, "other", "source") is None
    assert read_token_file(tmp_path / "none.rows", "key", "source") is None
    monkeypatch.setattr(token_file, "FORMAT_VERSION", token_file.FORMAT_VERSION + 1)
    assert read_token_file(path, "key", "source") is None


def test_unsaved_file_is_deleted_and_its_rows_stay(tmp_path):
    writer = TokenFileWriter(tmp_path)
    for tokens, columns in zip(TOKENS, COLUMNS, strict=True):
        writer.add_rows(tokens, columns)
    assert len(os.listdir(tmp_path)) == 1
    written = writer.to_token_file("source", {"proven": 3})
    del writer
    gc.collect()
    assert os.listdir(tmp_path) == []
    assert_content(written)


@pytest.mark.parametrize("failing_call", [0, 1])
@pytest.mark.parametrize("is_partial", [False, True])
def test_rows_stay_in_memory_when_the_disk_is_full(failing_call, is_partial, tmp_path, monkeypatch):
    calls, real = [], os.write

    def write(file, data):
        calls.append(len(data))
        if len(calls) > failing_call:
            if is_partial and len(calls) == failing_call + 1:
                return real(file, data[:3])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(file, data)

    writer = TokenFileWriter(tmp_path)
    monkeypatch.setattr(os, "write", write)
    for tokens, columns in zip(TOKENS, COLUMNS, strict=True):
        writer.add_rows(tokens, columns)
    assert writer.write_error == "No space left on device"
    assert writer.has_rows_in_memory
    assert_content(writer.to_token_file("source", {"proven": 3}))
    with pytest.raises(OSError, match="No space left"):
        writer.save_as(tmp_path / "x.rows", "key", {})
    assert not (tmp_path / "x.rows").exists()


def test_rows_stay_in_memory_when_the_folder_is_missing(tmp_path):
    writer = TokenFileWriter(tmp_path / "absent")
    assert writer.write_error
    for tokens, columns in zip(TOKENS, COLUMNS, strict=True):
        writer.add_rows(tokens, columns)
    assert_content(writer.to_token_file("source", {"proven": 3}))


def test_rows_stay_readable_when_the_file_cannot_be_saved(tmp_path):
    writer = TokenFileWriter(tmp_path)
    for tokens, columns in zip(TOKENS, COLUMNS, strict=True):
        writer.add_rows(tokens, columns)
    with pytest.raises(OSError, match="No such file"):
        writer.save_as(tmp_path / "absent" / "x.rows", "key", {})
    assert_content(writer.to_token_file("source", {"proven": 3}))
    assert set(COLUMNS[0]) == set(COLUMN_DTYPES)
