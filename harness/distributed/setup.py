"""Initialize the process group of a run, and end all processes together."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any

from harness.distributed.failure import FailureWatcher
from harness.distributed.launch import SHARED_RUN_COMMAND, get_local_rank, get_local_world_size, get_rank
from harness.distributed.processes import SINGLE_PROCESS, Processes
from harness.errors import HarnessError

WAIT_TIMEOUT = timedelta(days=365)
"""How long worker processes wait for the main process: the launcher ends them when it dies."""

COLLECTIVE_TIMEOUT = timedelta(minutes=30)
"""How far apart processes may be within a stage: workers continue while the main process writes a checkpoint."""


@contextmanager
def init_processes(world_size: int) -> Iterator[Processes]:
    """Within the context, the processes that a launcher started, on one or several nodes, can communicate.

    At the end the main process broadcasts None: there is no more work. When one process fails, all end. The main
    process ends with its own error or with a worker's, which names the worker; workers end silently.

    Args:
        world_size: As `get_world_size` returns it; 1: nothing is initialized.

    Raises:
        HarnessError: A node has more processes than GPUs, or the processes cannot connect.
    """
    if world_size == 1:
        yield SINGLE_PROCESS
        return
    from torch import distributed
    from torch.distributed.distributed_c10d import PrefixStore

    store = _connect_store()
    host = socket.gethostname() if get_local_world_size() < world_size else ""
    processes = Processes(get_rank(), world_size, host=host)
    # A connection of its own: the main thread can wait in a call of `store` for minutes.
    watcher = FailureWatcher(PrefixStore("harness", store.clone()), processes)
    watcher.start()
    try:
        _init_process_groups(store, processes)
        with processes.explained_errors():
            yield processes
            if processes.is_main:
                processes.broadcast(None)
    except BaseException as error:
        processes.mark_ending()
        watcher.handle_failure(error)
        raise
    watcher.stop()
    with suppress(RuntimeError):  # another process was interrupted here, after the last of the work
        processes.barrier()  # the main process may own the store, which ends with it
        distributed.destroy_process_group()


def split_by_node(local_ranks: Sequence[int]) -> list[list[int]]:
    """Return the ranks of each node.

    Args:
        local_ranks: The number of each process on its node, by rank.

    Raises:
        HarnessError: The ranks of a node are not consecutive.
    """
    nodes: list[list[int]] = []
    for rank, local_rank in enumerate(local_ranks):
        if local_rank == 0:
            nodes.append([])
        if not nodes or local_rank != len(nodes[-1]):
            what = f"the processes of a node do not have consecutive ranks: by rank, it is {[*local_ranks]}"
            raise HarnessError("LOCAL_RANK", what, "number the processes node by node, as torchrun does")
        nodes[-1].append(rank)
    return nodes


def _connect_store() -> Any:
    """Return the launcher's store, once all processes have connected."""
    from torch import distributed
    from torch.distributed.rendezvous import rendezvous

    try:
        store, _, _ = next(rendezvous("env://"))
    except (distributed.DistError, ValueError) as error:
        raise _connection_error(error) from error
    return store


def _init_process_groups(store: Any, processes: Processes) -> None:
    """Initialize the default group, which trains, a second group for waiting, and one for each further node."""
    import torch
    from torch import distributed

    has_cuda, local_world_size = torch.cuda.is_available(), get_local_world_size()
    if has_cuda and torch.cuda.device_count() < local_world_size:
        what = f"{local_world_size} processes were started, but {torch.cuda.device_count()} GPU(s) are visible"
        raise HarnessError("LOCAL_WORLD_SIZE", what, "start one process for each GPU, see CUDA_VISIBLE_DEVICES")
    if has_cuda:
        torch.cuda.set_device(get_local_rank())
    try:
        distributed.init_process_group(
            "nccl" if has_cuda else "gloo",
            store=store,
            rank=processes.rank,
            world_size=processes.world_size,
            timeout=COLLECTIVE_TIMEOUT,
        )
        processes.group = distributed.new_group(backend="gloo", timeout=WAIT_TIMEOUT)
        local_ranks: list[int] = [0] * processes.world_size
        distributed.all_gather_object(local_ranks, get_local_rank(), group=processes.group)
        processes.nodes = split_by_node(local_ranks)
        for ranks in processes.nodes[1:]:
            group = distributed.new_group(ranks, backend="gloo", timeout=WAIT_TIMEOUT)  # every process has to call it
            if processes.rank in ranks:
                processes.node_group = group
    except (distributed.DistError, ValueError, RuntimeError) as error:  # gloo raises RuntimeError
        raise _connection_error(error) from error


def _connection_error(error: Exception) -> HarnessError:
    where = f"MASTER_ADDR {os.environ['MASTER_ADDR']}, MASTER_PORT {os.environ['MASTER_PORT']}"
    hint = f"use a free port of this machine, or {SHARED_RUN_COMMAND}"
    if get_local_world_size() < int(os.environ["WORLD_SIZE"]):
        hint = "use a free port of the first node, and set GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME to its network"
    return HarnessError(where, f"process group initialization failed: {error}", hint)
