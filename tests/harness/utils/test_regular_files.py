"""Only files that have an end are opened."""

from __future__ import annotations

import os

import pytest

from harness.utils.regular_files import open_regular_file, read_regular_file


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes with names")
def test_a_pipe_and_a_device_are_refused_and_nothing_waits(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", "/dev/zero"):
        with pytest.raises(OSError, match="not a regular file"):
            open_regular_file(path)
    with pytest.raises(IsADirectoryError):
        open_regular_file(tmp_path)


def test_a_file_and_a_link_to_it_are_read_up_to_a_limit(tmp_path):
    (tmp_path / "file").write_bytes(b"12345")
    (tmp_path / "link").symlink_to(tmp_path / "file")
    assert read_regular_file(tmp_path / "link", 5) == b"12345"
    with pytest.raises(OSError, match="larger than"):
        read_regular_file(tmp_path / "file", 4)
