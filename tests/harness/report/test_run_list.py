"""`harness runs`: the runs of an output folder with their status."""

from __future__ import annotations

import fcntl
import json

import pytest
from support import run_folders

from harness.cli.main import main
from harness.errors import HarnessError
from harness.report.run_list import list_runs


@pytest.fixture
def output(tmp_path):
    """A folder with a finished run, an interrupted one, an experiment and an evaluation."""
    run_folders.write_run(tmp_path / "mixed-20260102-030405-ab12")
    unset = dict.fromkeys(("baseline", "joint", "gate"))
    for name, spec in (
        ("broken-20260103-000000-ab12", {"arms": None}),
        ("base-20260101-000000-ab12", {}),
        (
            "sweep-20260104-000000-ab12",
            {"arms": {"named": {"naive": {}, "ewc": {}}, "matrix": {}, "seeds": None, **unset}},
        ),
    ):
        (tmp_path / name).mkdir()
        (tmp_path / name / "spec.json").write_text(json.dumps(spec))
    (tmp_path / "base-20260101-000000-ab12" / "measured.json").write_text("{}")
    run_folders.write_run(tmp_path / "sweep-20260104-000000-ab12" / "arms" / "naive")
    (tmp_path / "plain-folder").mkdir()
    return tmp_path


def test_runs_are_listed_with_status_headline_and_remedy(output):
    sweep, broken, finished, evaluation = list_runs(output)
    assert (sweep.kind, sweep.status, sweep.progress) == ("experiment", "interrupted", "1 of 2 arms")
    assert broken.resume == f"harness run --resume {output / broken.name}"
    assert (finished.status, finished.started, finished.resume) == ("finished", "2026-01-02 03:04:05", "")
    report = json.loads((output / finished.name / "report.json").read_text())
    assert finished.headline == report["verdict"]["headline"]
    assert (evaluation.kind, evaluation.status) == ("evaluation", "finished")


def test_a_locked_run_is_running(output):
    folder = output / "broken-20260103-000000-ab12"
    with (folder / ".lock").open("w") as lock:
        assert list_runs(output)[1].status == "interrupted"
        fcntl.flock(lock, fcntl.LOCK_EX)
        running = list_runs(output)[1]
    assert (running.status, running.resume) == ("running", "")


def test_damaged_files_do_not_hide_other_runs(output):
    (output / "mixed-20260102-030405-ab12" / "report.json").write_text('{"verdict"')
    (output / "broken-20260103-000000-ab12" / "spec.json").write_text("[]")
    assert [run.headline for run in list_runs(output)] == [""] * 4


def test_the_command_prints_lines_or_json(output, capsys):
    assert main(["runs", str(output)]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "sweep-20260104-000000-ab12 2026-01-04 00:00:00 experiment, interrupted, 1 of 2 arms" in text
    assert main(["runs", str(output), "--json"]) == 0
    assert [run["status"] for run in json.loads(capsys.readouterr().out)] == [
        *("interrupted", "interrupted", "finished", "finished")
    ]
    assert main(["runs", str(output / "plain-folder")]) == 0
    assert capsys.readouterr().out.startswith("there is no run in ")


def test_a_folder_that_does_not_exist_is_named(tmp_path, capsys):
    with pytest.raises(HarnessError, match="there is no such folder"):
        list_runs(tmp_path / "none")
    assert main(["runs", str(tmp_path / "none")]) == 2
