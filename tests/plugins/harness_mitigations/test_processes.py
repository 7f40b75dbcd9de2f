"""Two processes that share a stage come to what one does: loss, pulls by two couplings, KL where one of them has no row
of it, and a resumed stage."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

PROGRAM = Path(__file__).with_name("stage_of_processes.py")


def run(folder, processes, batch_size):
    """Starts the program once a process and reads what they came to."""
    folder.mkdir()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"WORLD_SIZE": processes, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "ACCELERATE_USE_CPU": "true"}
    started = []
    for rank in range(processes):
        own = shared | {"RANK": rank, "LOCAL_RANK": rank if processes > 1 else -1, "OMP_NUM_THREADS": 1}
        environment = os.environ | {name: str(value) for name, value in own.items()}
        arguments = [sys.executable, str(PROGRAM), str(folder), str(batch_size)]
        started.append(subprocess.Popen(arguments, env=environment, stderr=subprocess.PIPE, text=True))
    try:
        ends = [process.communicate(timeout=120) for process in started]
    finally:  # one that waits for another for ever
        for process in started:
            process.kill()
    assert [process.returncode for process in started] == [0] * processes, "\n".join(error for _, error in ends)
    return torch.load(folder / "result.pt", weights_only=True)


PENALTIES = {"loss": ("ewc", "l2sp"), "proximal": ("ewc", "l2sp"), "kl": ("general", "task")}


def test_two_processes_give_the_result_of_one(tmp_path):
    ones, twos = run(tmp_path / "one", 1, 4), run(tmp_path / "two", 2, 2)
    assert set(ones) == set(PENALTIES)
    for kind, one in ones.items():
        two, penalties = twos[kind], [f"penalty/{name}" for name in PENALTIES[kind]]
        assert len(one["log"]) == len(two["log"]) == 4
        for its, others in zip(one["log"], two["log"], strict=True):
            for key in ("loss", "grad_norm", "learning_rate", *penalties):
                assert others[key] == pytest.approx(its[key], rel=1e-3, abs=1e-6), (kind, key)
        assert all(one["log"][-1][penalty] > 0 for penalty in penalties)
        for name, weight in one["weights"].items():
            assert torch.allclose(two["weights"][name], weight, atol=1e-5), (kind, name)
        for found in (one, two):
            assert all(torch.equal(found["resumed"][name], weight) for name, weight in found["weights"].items())
