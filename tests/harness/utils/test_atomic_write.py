"""A file is replaced as a whole or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.utils.atomic_write import atomic_write


def test_file_is_replaced_when_the_block_ends(tmp_path):
    file = tmp_path / "a.txt"
    file.write_text("old")
    with atomic_write(file) as draft:
        draft.write_text("new")
        assert file.read_text() == "old"
    assert file.read_text() == "new"
    assert list(tmp_path.iterdir()) == [file]


def test_an_error_in_the_block_keeps_the_old_file(tmp_path):
    file = tmp_path / "a.txt"
    file.write_text("old")
    with pytest.raises(OSError, match="disk full"), atomic_write(file) as draft:
        _write_half(draft)
    assert file.read_text() == "old"
    assert list(tmp_path.iterdir()) == [file]


def test_an_error_before_the_first_byte_leaves_no_file(tmp_path):
    with pytest.raises(ValueError, match="no text"), atomic_write(tmp_path / "a.txt"):
        raise ValueError("no text")
    assert list(tmp_path.iterdir()) == []


def _write_half(draft: Path) -> None:
    draft.write_text("ne")
    raise OSError("disk full")
