"""What a launcher says of its processes, and which of them are refused in one line."""

from __future__ import annotations

import socket

import pytest

from harness.cli.main import main
from harness.distributed import launch, processes, setup
from harness.errors import HarnessError

TWO = {
    "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "RANK": "1", "LOCAL_RANK": "1", "MASTER_ADDR": "127.0.0.1",
    "MASTER_PORT": "29500", "TORCHELASTIC_MAX_RESTARTS": "0",
}  # fmt: skip


def test_a_process_without_a_launcher_is_alone():
    for environment in ({}, {"RANK": "3"}, {"WORLD_SIZE": "1", "RANK": "0", "LOCAL_RANK": "0"}):
        assert launch.get_rank(environment) == 0
        assert launch.get_world_size(environment) == 1


def test_the_processes_of_torchrun_know_their_numbers():
    assert launch.get_world_size(TWO) == 2
    assert launch.get_rank(TWO) == 1


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"WORLD_SIZE": "4"}, "4 processes on more than one node"),
        ({"LOCAL_RANK": "0"}, "more than one node"),
        ({"WORLD_SIZE": "two"}, "'two' is no number of processes"),
        ({"RANK": ""}, "WORLD_SIZE is 2, and this is not set"),
        ({"MASTER_PORT": ""}, "WORLD_SIZE is 2, and this is not set"),
        ({"TORCHELASTIC_MAX_RESTARTS": "3"}, "a restart by the launcher would begin another run"),
        ({"ACCELERATE_USE_FSDP": "true"}, "FSDP is not supported"),
        ({"ACCELERATE_USE_DEEPSPEED": "true", "WORLD_SIZE": "1"}, "DeepSpeed is not supported"),
        ({"ACCELERATE_MIXED_PRECISION": "bf16"}, "the precision is the spec's"),
        ({"WORLD_SIZE": "", "OMPI_COMM_WORLD_SIZE": "2"}, "processes that MPI started"),
    ],
)
def test_what_is_not_supported_is_refused_in_one_line(changes, said):
    with pytest.raises(HarnessError, match=said) as refused:
        launch.get_world_size({**TWO, **changes})
    (line,) = refused.value.lines()
    assert line.endswith(refused.value.hint)
    assert refused.value.exit_code == 2


def test_every_command_but_run_is_for_one_process(monkeypatch, capsys):
    for name, value in TWO.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("RANK", "0")
    assert main(["validate", "spec.json"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("harness: torchrun: harness validate runs in one process")


def test_one_process_shares_with_itself():
    assert processes.SINGLE_PROCESS.is_main
    assert processes.SINGLE_PROCESS.broadcast({"a": 1}) == {"a": 1}
    with setup.init_processes(1) as shared, shared.main_first():
        assert shared is processes.SINGLE_PROCESS
        shared.barrier()


@pytest.mark.parametrize("port", ["taken", "70000000", "none"])
def test_a_port_where_processes_cannot_meet_is_one_line(monkeypatch, port):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        number = str(taken.getsockname()[1]) if port == "taken" else port
        for name, value in {**TWO, "RANK": "0", "LOCAL_RANK": "0", "MASTER_PORT": number}.items():
            monkeypatch.setenv(name, value)
        with pytest.raises(HarnessError, match=f"MASTER_PORT {number}: the processes cannot meet") as refused:
            setup.init_processes(2).__enter__()
    (line,) = refused.value.lines()
    assert "--standalone" in line
