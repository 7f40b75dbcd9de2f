"""A run on two nodes, each of which is a process of this machine: one folder, and the result of one node."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys

import pytest
from support.launched import ENOUGH, send_when_there, start

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def continual(desk, **changes):
    """A spec of two stages whose mitigations write caches."""
    document = desk.continual(mitigations={"lora": {"rank": 2}, "ewc": {"source": "general", "samples": 4}}, **changes)
    document["train"] |= {"engine": "transformers"}
    return document


def test_two_nodes_give_the_result_of_one(desk, same, tmp_path):
    document = continual(desk)
    assert start("run", desk.write(document)).codes == (0, 0)
    one = desk.newest()
    caches = [{"HARNESS_CACHE": tmp_path / name, "HOME": tmp_path / name} for name in ("first", "second")]
    ended = start("run", desk.write(document), nodes=2, own=caches)
    assert ended.codes == (0, 0), ended.errors
    two = desk.newest()
    same(one, two)
    assert [json.loads((run / "environment.json").read_text())["nodes"] for run in (one, two)] == [1, 2]
    assert ended.out.count("run folder") == 1
    assert not list((tmp_path / "second").rglob("outputs.txt")), "the second node writes no list of runs"
    tokens = [sorted(file.name for file in (tmp_path / name / "rows").iterdir()) for name in ("first", "second")]
    assert tokens[0] == tokens[1] != [], "each node has its own cache"


def test_a_folder_that_is_not_shared_is_refused_before_the_run(desk, tmp_path):
    document = json.loads(desk.write(desk.document()).read_text())
    spec = desk.folder / "relative.json"
    spec.write_text(json.dumps({**document, "output": "out"}))
    folders = [tmp_path / "first", tmp_path / "second"]
    for folder in folders:
        folder.mkdir()
    ended = start("run", spec, nodes=2, folders=folders, waits=30)
    assert ended.codes == (2, 0), ended.errors
    (line,) = ended.complaints()
    assert line.startswith(f"harness: output: out: not seen on {socket.gethostname()} (working folder {folders[1]})")
    assert 'set "output" to a folder on a disk that all nodes share' in line
    assert list((folders[0] / "out").iterdir()) == []
    assert list(folders[1].iterdir()) == []


@pytest.mark.parametrize("fault", ["run error", "bug"])
def test_a_failure_on_the_second_node_ends_both(desk, fault):
    ended = start("run", desk.write(continual(desk)), nodes=2, fault=(fault, 1, 2), waits=60)
    assert ended.codes == (1, 0), ended.errors
    (line,) = ended.complaints()
    where = f"process 2 of 2 on {socket.gethostname()}: "
    assert line == f"harness: {where}" + ("ValueError: a bug" if fault == "bug" else "here: it went wrong; fix it")
    text = (desk.newest() / "error.txt").read_text()
    assert text.startswith(f"RunError: {where}")
    assert "command_with_fault.py" in text, "the traceback of the worker"


def test_a_worker_that_is_killed_ends_the_run_with_one_line(desk):
    document = continual(desk)
    document["train"] |= {"steps": 400}
    spec = desk.write(document)
    kill = send_when_there("*/stages/a/steps.jsonl", desk.folder / f"out{desk.count}", 1, "SIGKILL")
    ended = start("run", spec, nodes=2, then=kill)
    assert ended.codes == (1, -9), ended.errors
    (line,) = ended.complaints()
    assert "a worker process ended without an error, or its node cannot be reached" in line
    assert (desk.newest() / "error.txt").is_file()


def test_a_wrong_spec_is_reported_once(desk):
    ended = start("run", desk.write(desk.document(seed="none")), nodes=2, waits=60)
    assert ended.codes == (2, 0), ended.errors
    (line,) = ended.complaints()
    assert "seed" in line


def interrupt(desk, document, rank):
    """Run a spec on two nodes, send SIGTERM to one after the first step, and return the folder of the run."""
    spec = desk.write(document)
    send = send_when_there("*/stages/a/steps.jsonl", desk.folder / f"out{desk.count}", rank)
    ended = start("run", spec, nodes=2, then=send, waits=60)
    assert ended.codes == (75, 0), ended.errors
    run = desk.newest()
    (line,) = ended.complaints()
    assert line == (
        f"harness: interrupted by SIGTERM; to resume: harness run --resume {run} with 2 processes of your launcher"
    )
    (checkpoint,) = run.glob("stages/a/checkpoints/*")
    assert 1 <= int(re.findall(r"\d+", checkpoint.name)[0]) < document["train"]["steps"]
    return run


def test_a_signal_saves_a_checkpoint_and_one_node_resumes(desk, same):
    document = continual(desk)
    document["train"] |= {"steps": 30, "save_steps": 30}
    assert start("run", desk.write(document)).codes == (0, 0)
    whole = desk.newest()
    run = interrupt(desk, document, rank=0)
    assert desk.command("run", "--resume", run) == 2, "one process is not enough"
    ended = start("run", "--resume", run)
    assert ended.codes == (0, 0), ended.errors
    same(whole, run)


def test_a_signal_to_the_second_node_stops_both(desk):
    document = continual(desk)
    document["train"] |= {"steps": 1000, "save_steps": 1000}  # long enough for the signal to be passed on
    interrupt(desk, document, rank=1)


def test_torchrun_on_two_nodes(desk, same):
    document = continual(desk)
    assert start("run", desk.write(document)).codes == (0, 0)
    one = desk.newest()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    launcher = ["-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "1", "--rdzv-backend", "c10d"]
    launcher += ["--rdzv-id", "1", "--rdzv-endpoint", f"127.0.0.1:{port}", "--local-addr", "127.0.0.1"]
    command = [sys.executable, *launcher, "-m", "harness", "run", str(desk.write(document))]
    started = [
        subprocess.Popen(command, env=os.environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    try:
        outputs = [process.communicate(timeout=ENOUGH) for process in started]
    finally:
        for process in started:
            process.kill()
    assert [process.returncode for process in started] == [0, 0], outputs
    two = desk.newest()
    same(one, two)
    assert json.loads((two / "environment.json").read_text())["nodes"] == 2
