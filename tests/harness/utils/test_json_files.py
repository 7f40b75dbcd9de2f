"""JSON Lines files are read line by line, without an incomplete last line."""

from __future__ import annotations

import pytest

from harness.utils.json_files import read_json_lines


def test_missing_file_has_no_lines(tmp_path):
    assert list(read_json_lines(tmp_path / "steps.jsonl")) == []


def test_incomplete_last_line_is_ignored(tmp_path):
    file = tmp_path / "steps.jsonl"
    file.write_text('{"step": 1}\n{"step": 2}\n{"step": 3}')
    assert list(read_json_lines(file)) == [{"step": 1}, {"step": 2}]


def test_unicode_line_separators_do_not_end_a_line(tmp_path):
    file = tmp_path / "steps.jsonl"
    file.write_text('["a\u2028b\x85c"]\n', encoding="utf-8")
    assert list(read_json_lines(file)) == [["a\u2028b\x85c"]]


def test_invalid_complete_line_is_an_error_unless_skipped(tmp_path):
    file = tmp_path / "steps.jsonl"
    file.write_text('{"step": 1}\n{"st\n{"step": 2}\n')
    with pytest.raises(ValueError, match="line 1 column"):
        list(read_json_lines(file))
    assert list(read_json_lines(file, skip_invalid=True)) == [{"step": 1}, {"step": 2}]
