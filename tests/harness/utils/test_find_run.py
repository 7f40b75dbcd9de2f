"""A run that is not found: the latest ones are named, whatever their names."""

from __future__ import annotations

import os

import pytest

from harness.errors import HarnessError
from harness.utils.find_run import LOCK_FILE, AmbiguousRun, find_finished_run, find_run, find_run_anywhere
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


@pytest.fixture
def runs(tmp_path, monkeypatch):
    """Two runs and an experiment of two arms in the folder `runs`."""
    monkeypatch.chdir(tmp_path)
    experiment = "sweep-20260101-080000-abcd"
    names = ["demo-20260101-080000-1a2b", "demo-20260102-080000-3c4d", experiment]
    for age, name in enumerate([*names, f"{experiment}/arms/naive", f"{experiment}/arms/lora-seed0"]):
        folder = tmp_path / "runs" / name
        folder.mkdir(parents=True)
        (folder / "spec.json").write_text("{}")
        os.utime(folder / "spec.json", (1000 + age, 1000 + age))
    (tmp_path / "runs" / "notes").mkdir()
    return tmp_path / "runs"


@pytest.mark.parametrize(
    ("name", "folder"),
    [
        ("demo-20260101-080000-1a2b", "demo-20260101-080000-1a2b"),
        ("demo-20260102", "demo-20260102-080000-3c4d"),
        ("sweep", "sweep-20260101-080000-abcd"),
        ("sweep/naive", "sweep-20260101-080000-abcd/arms/naive"),
        ("sweep/arms/lora", "sweep-20260101-080000-abcd/arms/lora-seed0"),
        ("sweep-20260101-080000-abcd/na", "sweep-20260101-080000-abcd/arms/naive"),
    ],
)
def test_a_run_is_found_by_the_beginning_of_its_name(runs, name, folder):
    assert find_run(name) == find_run(name, "runs") == runs.relative_to(runs.parent) / folder
    assert find_run_anywhere(name).resolve() == runs / folder
    assert find_run(name, runs) == runs / folder


def test_an_ambiguous_name_is_an_error_that_lists_the_candidates(runs):
    message = (
        "run demo: 2 runs have a name that begins with 'demo'; "
        "name one of them: runs/demo-20260102-080000-3c4d, runs/demo-20260101-080000-1a2b"
    )
    for find in (find_run, find_run_anywhere):
        with pytest.raises(AmbiguousRun) as error:
            find("demo")
        assert str(error.value) == message
    with pytest.raises(HarnessError, match=r"spec\.json:1:1: 2 runs have a name that begins with 'demo'; name one of"):
        find_finished_run("demo", where="spec.json:1:1")


@pytest.mark.parametrize(
    "name", ["emo", "notes", "sweep/other", "demo/naive", "..", "./demo", "/demo", "a/b/c", "arms"]
)
def test_only_the_beginning_of_a_run_name_matches(runs, name):
    with pytest.raises(HarnessError, match="there is no such run; the latest in runs are sweep"):
        find_run(name)


def test_a_complete_name_is_not_ambiguous_with_a_longer_one(runs):
    longer = runs / "demo-20260101-080000-1a2bc"
    longer.mkdir()
    (longer / "spec.json").write_text("{}")
    assert find_run("demo-20260101-080000-1a2b").name == "demo-20260101-080000-1a2b"


def test_a_run_that_is_running_is_not_called_interrupted(tmp_path):
    from filelock import FileLock

    (tmp_path / "spec.json").write_text("{}")
    with FileLock(tmp_path / LOCK_FILE), pytest.raises(HarnessError, match="has no result yet: it is running; wait"):
        find_finished_run(tmp_path)
    with pytest.raises(HarnessError, match="has no result: it did not finish; resume it"):
        find_finished_run(tmp_path)
