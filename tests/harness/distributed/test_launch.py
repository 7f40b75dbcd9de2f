"""Launches are read from the environment, and unsupported ones are rejected in one line."""

from __future__ import annotations

import socket

import pytest
from torch import distributed

from harness.cli.main import main
from harness.distributed import launch, processes, setup
from harness.errors import HarnessError

TWO = {
    "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "RANK": "1", "LOCAL_RANK": "1", "MASTER_ADDR": "127.0.0.1",
    "MASTER_PORT": "29500", "TORCHELASTIC_MAX_RESTARTS": "0",
}  # fmt: skip


def test_without_a_launcher_there_is_one_process():
    for environment in ({}, {"RANK": "3"}, {"WORLD_SIZE": "1", "RANK": "0", "LOCAL_RANK": "0"}):
        assert launch.get_rank(environment) == 0
        assert launch.get_world_size(environment) == 1


def test_rank_and_world_size_are_those_of_torchrun():
    assert launch.get_world_size(TWO) == 2
    assert launch.get_rank(TWO) == 1


def test_a_node_has_its_own_ranks():
    third = {**TWO, "WORLD_SIZE": "4", "RANK": "2", "LOCAL_RANK": "0"}
    assert (launch.get_world_size(third), launch.get_rank(third)) == (4, 2)
    assert (launch.get_local_world_size(third), launch.get_local_rank(third)) == (2, 0)
    without = {name: value for name, value in TWO.items() if name != "LOCAL_WORLD_SIZE"}
    assert launch.get_local_world_size(without) == 2, "one node, unless the local rank is another one"
    assert (launch.get_local_world_size({}), launch.get_local_rank({"LOCAL_RANK": "3"})) == (1, 0)


def test_local_ranks_tell_the_nodes_apart():
    assert setup.split_by_node([0, 1, 2, 0, 1]) == [[0, 1, 2], [3, 4]]
    assert setup.split_by_node([0, 0]) == [[0], [1]]
    for mixed_up in ([0, 0, 1, 1], [1, 0], [0, 2]):
        with pytest.raises(HarnessError, match="LOCAL_RANK: the processes of a node do not have consecutive ranks"):
            setup.split_by_node(mixed_up)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"RANK": "2"}, "RANK, WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE: do not fit together: 2, 2, 1, 2"),
        ({"LOCAL_WORLD_SIZE": "4"}, "do not fit together: 1, 2, 1, 4"),
        ({"LOCAL_WORLD_SIZE": "1"}, "do not fit together: 1, 2, 1, 1"),
        ({"WORLD_SIZE": "4", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": ""}, "LOCAL_WORLD_SIZE: there are several nodes"),
        ({"WORLD_SIZE": "two"}, "'two' is not a number of processes"),
        ({"RANK": ""}, "WORLD_SIZE is 2, but this is not set"),
        ({"MASTER_PORT": ""}, "WORLD_SIZE is 2, but this is not set"),
        ({"TORCHELASTIC_MAX_RESTARTS": "3"}, "a restart by the launcher would start another run"),
        ({"ACCELERATE_USE_FSDP": "true"}, "FSDP is not supported"),
        ({"ACCELERATE_USE_DEEPSPEED": "true", "WORLD_SIZE": "1"}, "DeepSpeed is not supported"),
        ({"ACCELERATE_MIXED_PRECISION": "bf16"}, "the spec determines the precision"),
        ({"WORLD_SIZE": "", "OMPI_COMM_WORLD_SIZE": "2"}, "processes started by MPI"),
    ],
)
def test_unsupported_launch_is_rejected_in_one_line(changes, message):
    with pytest.raises(HarnessError, match=message) as caught:
        launch.get_world_size({**TWO, **changes})
    (line,) = caught.value.lines()
    assert line.endswith(caught.value.hint)
    assert caught.value.exit_code == 2


def test_commands_other_than_run_need_one_process(monkeypatch, capsys):
    for name, value in TWO.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("RANK", "0")
    assert main(["validate", "spec.json"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("harness: torchrun: harness validate runs in one process")


def test_collectives_of_a_single_process_return_at_once():
    assert processes.SINGLE_PROCESS.is_main
    assert processes.SINGLE_PROCESS.broadcast({"a": 1}) == {"a": 1}
    with setup.init_processes(1) as group, group.main_first():
        assert group is processes.SINGLE_PROCESS
        group.barrier()


def test_a_process_whose_partner_is_interrupted_after_the_work_ends_without_an_error(monkeypatch):
    class Watcher:
        def __init__(self, store, group):
            pass

        start = stop = lambda self: None

    def lose_connection(group):
        raise RuntimeError("[pair.cc:553] Connection closed by peer [127.0.0.1]:10980")

    for name, value in {**TWO, "RANK": "1", "LOCAL_RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(setup, "_connect_store", distributed.HashStore)
    monkeypatch.setattr(setup, "_init_process_groups", lambda store, group: None)
    monkeypatch.setattr(setup, "FailureWatcher", Watcher)
    monkeypatch.setattr(processes.Processes, "barrier", lose_connection)
    done = []
    with setup.init_processes(2) as group:
        done.append(group.rank)
    assert done == [1]


@pytest.mark.parametrize("port", ["occupied", "70000000", "none"])
def test_failed_process_group_initialization_is_a_one_line_error(monkeypatch, port):
    with socket.socket() as occupied:
        occupied.bind(("127.0.0.1", 0))
        occupied.listen()
        port_value = str(occupied.getsockname()[1]) if port == "occupied" else port
        for name, value in {**TWO, "RANK": "0", "LOCAL_RANK": "0", "MASTER_PORT": port_value}.items():
            monkeypatch.setenv(name, value)
        with pytest.raises(
            HarnessError, match=f"MASTER_PORT {port_value}: process group initialization failed"
        ) as caught:
            setup.init_processes(2).__enter__()
    (line,) = caught.value.lines()
    assert "harness run SPEC --gpus N" in line
