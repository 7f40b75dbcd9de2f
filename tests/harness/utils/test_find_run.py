"""A run that is not found: the latest ones are named, whatever their names."""

from __future__ import annotations

import os

import pytest

from harness.errors import HarnessError
from harness.utils.find_run import find_run
from harness.utils.shell_commands import resume_command


def test_the_latest_runs_are_named_the_newest_first(tmp_path):
    for age, name in enumerate(("b", "z", "a", "c")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "spec.json").write_text("{}")
        os.utime(tmp_path / name / "spec.json", (1000 - age, 1000 - age))
    with pytest.raises(HarnessError, match=r"are b, z, a$"):
        find_run("missing", tmp_path)


def test_the_command_that_resumes_starts_as_many_processes():
    assert resume_command("my run") == "harness run --resume 'my run'"
    assert resume_command("r", 2) == "harness run --resume r --gpus 2"
