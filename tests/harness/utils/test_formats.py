"""What another version wrote is refused with the version that reads it."""

from __future__ import annotations

import json

import pytest

from harness.errors import HarnessError, RunError
from harness.utils import formats
from harness.utils.formats import RUN_FORMAT, format_problem, require_run_format
from harness.utils.manifest import load_manifest, require_manifest_format, write_manifest


def test_the_current_format_is_read():
    assert format_problem(3, 3) is None


@pytest.mark.parametrize(
    ("found", "written_by", "remedy"),
    [
        (None, None, "pip install 'harness-sft==0.2.0'"),
        (1, "0.1.7", "pip install 'harness-sft==0.1.7'"),
        (4, "9.1", "pip install 'harness-sft==9.1'"),
        (4, None, "pip install --upgrade harness-sft"),
    ],
)
def test_another_format_names_the_version_that_reads_it(found, written_by, remedy):
    what, hint = format_problem(found, 3, written_by)
    assert f"format {found or 1}, and this harness reads format 3" in what
    assert hint == remedy


@pytest.mark.parametrize("found", [True, "2", 0, -1, 1.5, [], {}])
def test_something_else_is_not_the_number_of_a_format(found):
    assert "is not the number of a format" in format_problem(found, 3)[0]


def test_a_run_of_an_older_version_is_not_resumed(tmp_path):
    require_run_format(tmp_path)  # interrupted before it described its environment
    (tmp_path / "environment.json").write_text(json.dumps({"format": RUN_FORMAT, "harness": "0.3"}))
    require_run_format(tmp_path)
    (tmp_path / "environment.json").write_text(json.dumps({"harness": "0.2.0"}))
    with pytest.raises(HarnessError, match=r"format 1.*harness-sft==0\.2\.0' to resume it"):
        require_run_format(tmp_path)


def test_a_manifest_names_its_format_and_its_writer(tmp_path, monkeypatch):
    (tmp_path / "weights").write_bytes(b"1")
    write_manifest(tmp_path, "manifest.json", {"step": 1})
    manifest = load_manifest(tmp_path, "manifest.json", "")
    require_manifest_format(tmp_path, manifest)
    assert manifest["harness"] == formats.installed_harness()
    with pytest.raises(RunError, match=r"format 7.*harness-sft==9\.0"):
        require_manifest_format(tmp_path, {**manifest, "format": 7, "harness": "9.0"})
