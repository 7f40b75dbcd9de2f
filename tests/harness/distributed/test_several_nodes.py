"""What processes on several nodes need in addition: a shared folder, and an order within each node."""

from __future__ import annotations

import socket
import subprocess
import sys
import traceback

import pytest

from harness.distributed import failure, shared_folder
from harness.distributed.processes import Processes
from harness.errors import HarnessError, RunError
from harness.runner.error_file import write_error
from harness.runner.stage_loop import _require_equal_inputs
from harness.utils.shell_commands import resume_command


class MainProcess(Processes):
    """The main process of two nodes; `answer` is what the other one says about a file."""

    def __init__(self, answer):
        super().__init__(0, 2, host="first")
        self.nodes, self.answer, self.markers = [[0], [1]], answer, []

    def broadcast(self, value):
        self.markers.append(value)
        assert value.exists()
        return value

    def gather(self, value):
        return [value, self.answer]


def test_a_folder_that_a_node_does_not_see_is_refused_in_one_line(tmp_path):
    processes = MainProcess("second (working folder /home)")
    with pytest.raises(HarnessError, match=r"out: not seen on second \(working folder /home\)") as caught:
        shared_folder.require_shared_folder(processes, tmp_path / "out")
    assert len(caught.value.lines()) == 1
    assert caught.value.exit_code == 2
    assert not any((tmp_path / "out").iterdir()), "the marker is deleted"


def test_a_shared_folder_is_accepted_and_stays_empty(tmp_path):
    processes = MainProcess(None)
    shared_folder.require_shared_folder(processes, tmp_path)
    assert len(processes.markers) == 1
    assert not any(tmp_path.iterdir())


def test_a_folder_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(HarnessError, match="the folder cannot be written"):
        shared_folder.require_shared_folder(MainProcess(None), tmp_path / "file")


def test_processes_of_one_node_do_not_look(tmp_path):
    shared_folder.require_shared_folder(Processes(0, 2), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_file_that_appears_late_is_seen(tmp_path, monkeypatch):
    waits = []
    monkeypatch.setattr(shared_folder.time, "sleep", lambda _: waits.append((tmp_path / "late").touch()))
    assert shared_folder._becomes_visible(tmp_path / "late")
    assert len(waits) == 1
    monkeypatch.setattr(shared_folder, "VISIBLE_SECONDS", 0)
    assert not shared_folder._becomes_visible(tmp_path / "never")


def test_an_error_names_the_host_where_there_are_several():
    assert str(Processes(1, 2)) == "process 2 of 2"
    assert str(Processes(1, 2, host="second")) == "process 2 of 2 on second"


@pytest.mark.parametrize("error", [RunError("here", "it went wrong", "fix it"), ValueError("a bug")])
def test_the_error_file_has_the_traceback_of_the_worker(tmp_path, error):
    try:
        raise error
    except Exception as raised:
        sent = failure._serialize_error(raised, Processes(1, 2, host="second"))
        trace = traceback.format_exception(raised)
    received = failure._deserialize_error(sent)
    write_error(tmp_path, received)
    text = (tmp_path / "error.txt").read_text()
    assert text.startswith("RunError: process 2 of 2 on second: ")
    assert str(error) in text.splitlines()[0]
    assert "".join(trace) in text
    assert received.exit_code == 1


def test_the_consequence_of_an_error_becomes_that_error():
    processes, cause = Processes(0, 2), RunError("process 2 of 2", "failed")
    processes.find_worker_error = lambda error: cause if isinstance(error, RuntimeError) else None
    with pytest.raises(RunError) as caught, processes.explained_errors():
        raise RuntimeError("connection closed")
    assert caught.value is cause
    with pytest.raises(ValueError, match="own"), processes.explained_errors():
        raise ValueError("own")


def test_inputs_of_a_node_that_differ_are_refused():
    main = {"torch": "2.13", "model.path": "hub:a@12", "sources.domain": "34"}
    _require_equal_inputs(main, dict(main))
    _require_equal_inputs(main, {**main, "model.path": "hub:a"})
    _require_equal_inputs({**main, "model.path": "hub:a"}, main)
    for name, other in (("torch", "2.14"), ("model.path", "hub:a@13"), ("sources.domain", "35"), ("plugin x", "1")):
        with pytest.raises(RunError, match=f"{name}: differs from that of the main process: {other}"):
            _require_equal_inputs(main, {**main, name: other})


def test_the_command_that_resumes_names_the_processes():
    assert resume_command("a", 4) == "harness run --resume a --gpus 4"
    assert resume_command("a", 4, 2) == "harness run --resume a with 4 processes of your launcher"


PROGRAM = """
import os, sys, time
from pathlib import Path
from harness.distributed.setup import init_processes

log = Path(sys.argv[1])
with init_processes(4) as processes:
    with processes.main_first() if sys.argv[2] == "main" else processes.node_first():
        before = len(list(log.iterdir()))
        (log / f"{processes.rank}-{before}").touch()
        time.sleep(0.3)
    if not processes.is_main:
        processes.broadcast(None)
"""


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_one_process_of_a_node_runs_before_its_neighbors(tmp_path):
    for word in ("main", "node"):
        (tmp_path / word).mkdir()
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        shared = {"WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        path = {"PYTHONPATH": ":".join(sys.path), "OMP_NUM_THREADS": "1", "PATH": "/usr/bin:/bin"}
        started = [
            subprocess.Popen(
                [sys.executable, "-c", PROGRAM, tmp_path / word, word],
                env={**shared, **path, "RANK": str(rank), "LOCAL_RANK": str(rank % 2)},
            )
            for rank in range(4)
        ]
        try:
            assert [process.wait(240) for process in started] == [0, 0, 0, 0]
        finally:
            for process in started:
                process.kill()
        seen = {int(file.name[0]): int(file.name[2]) for file in (tmp_path / word).iterdir()}
        assert seen[3] > seen[2], "the second process of the second node found what the first one made"
        if word == "main":
            assert seen[0] == 0
            assert min(seen[1], seen[2]) >= 1
