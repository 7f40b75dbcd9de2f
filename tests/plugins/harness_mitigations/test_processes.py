"""Two processes give the result of one: loss, penalties, KL with rows in one process only, and a resumed stage."""

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
    """Start the program in each process and return its results."""
    folder.mkdir()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common_environment = {
        "WORLD_SIZE": processes,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
        "ACCELERATE_USE_CPU": "true",
    }
    processes_started = []
    for rank in range(processes):
        rank_environment = common_environment | {
            "RANK": rank,
            "LOCAL_RANK": rank if processes > 1 else -1,
        }
        environment = os.environ | {name: str(value) for name, value in rank_environment.items()}
        arguments = [sys.executable, str(PROGRAM), str(folder), str(batch_size)]
        processes_started.append(subprocess.Popen(arguments, env=environment, stderr=subprocess.PIPE, text=True))
    try:
        outputs = [process.communicate(timeout=280) for process in processes_started]
    finally:  # a process may wait for another one forever
        for process in processes_started:
            process.kill()
    assert [process.returncode for process in processes_started] == [0] * processes, "\n".join(
        error for _, error in outputs
    )
    return torch.load(folder / "result.pt", weights_only=True)


PENALTIES = {"loss": ("ewc", "l2sp"), "proximal": ("ewc", "l2sp"), "kl": ("general", "task")}


@pytest.mark.slow
def test_two_processes_give_the_result_of_one(tmp_path):
    ones, twos = run(tmp_path / "one", 1, 4), run(tmp_path / "two", 2, 2)
    assert set(ones) == set(PENALTIES)
    for kind, one in ones.items():
        two, penalties = twos[kind], [f"penalty/{name}" for name in PENALTIES[kind]]
        assert len(one["log"]) == len(two["log"]) == 4
        for entry, other_entry in zip(one["log"], two["log"], strict=True):
            for key in ("loss", "grad_norm", "learning_rate", *penalties):
                assert other_entry[key] == pytest.approx(entry[key], rel=1e-3, abs=1e-6), (kind, key)
        assert all(one["log"][-1][penalty] > 0 for penalty in penalties)
        for name, weight in one["weights"].items():
            assert torch.allclose(two["weights"][name], weight, atol=1e-5), (kind, name)
        for result in (one, two):
            assert all(torch.equal(result["resumed"][name], weight) for name, weight in result["weights"].items())
