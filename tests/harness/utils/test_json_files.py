"""JSON Lines files are read line by line, without an incomplete last line."""

from __future__ import annotations

from harness.utils.json_files import read_json_lines


def test_missing_file_has_no_lines(tmp_path):
    assert read_json_lines(tmp_path / "steps.jsonl") == []


def test_incomplete_last_line_is_ignored(tmp_path):
    file = tmp_path / "steps.jsonl"
    file.write_text('{"step": 1}\n{"step": 2}\n{"step": 3}')
    assert read_json_lines(file) == [{"step": 1}, {"step": 2}]


def test_unicode_line_separators_do_not_end_a_line(tmp_path):
    file = tmp_path / "steps.jsonl"
    file.write_text('{"text": "a\u2028b\x85c"}\n', encoding="utf-8")
    assert read_json_lines(file) == [{"text": "a\u2028b\x85c"}]


def test_lines_that_are_not_json_objects_are_ignored(tmp_path):
    file = tmp_path / "steps.jsonl"
    file.write_bytes(b'{"step": 1}\n{"st\n\n[1]\n{"a": "\xff"}\n{"step": 2}\n')
    assert read_json_lines(file) == [{"step": 1}, {"step": 2}]
