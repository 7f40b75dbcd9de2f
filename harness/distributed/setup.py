"""Initialize the process group of a run, and end all processes together."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

from harness.distributed.failure import FailureWatcher
from harness.distributed.launch import SHARED_RUN_COMMAND, get_rank
from harness.distributed.processes import SINGLE_PROCESS, Processes
from harness.errors import HarnessError

WAIT_TIMEOUT = timedelta(days=365)
"""How long worker processes wait for the main process: the launcher ends them when it dies."""

COLLECTIVE_TIMEOUT = timedelta(minutes=30)
"""How far apart processes may be within a stage: workers continue while the main process writes a checkpoint."""


@contextmanager
def init_processes(world_size: int) -> Iterator[Processes]:
    """Within the context, the processes that a launcher started can communicate.

    At the end the main process broadcasts None: there is no more work. When one process fails, all end. The main
    process ends with its own error or with a worker's, which names the worker; workers end silently.

    Args:
        world_size: As `get_world_size` returns it; 1: nothing is initialized.

    Raises:
        HarnessError: There are more processes than GPUs, or the processes cannot connect.
    """
    if world_size == 1:
        yield SINGLE_PROCESS
        return
    from torch import distributed

    store, group = _init_process_group(world_size)
    processes = Processes(get_rank(), world_size, group)
    watcher = FailureWatcher(store, processes)
    watcher.start()
    try:
        yield processes
        if processes.is_main:
            processes.broadcast(None)
    except BaseException as error:
        processes.mark_ending()
        worker_error = watcher.handle_failure(error)
        if worker_error is not None:
            raise worker_error from error
        raise
    watcher.stop()
    processes.barrier()  # the main process may own the store, which ends with it
    distributed.destroy_process_group()


def _init_process_group(world_size: int) -> tuple[Any, Any]:
    """Initialize the default group, which trains, and return the launcher's store and a second group for waiting."""
    import torch
    from torch import distributed
    from torch.distributed.distributed_c10d import PrefixStore
    from torch.distributed.rendezvous import rendezvous

    has_cuda = torch.cuda.is_available()
    if has_cuda and torch.cuda.device_count() < world_size:
        what = f"{world_size} processes were started, but {torch.cuda.device_count()} GPU(s) are visible"
        raise HarnessError("WORLD_SIZE", what, "start one process for each GPU, see CUDA_VISIBLE_DEVICES")
    if has_cuda:
        torch.cuda.set_device(get_rank())
    try:
        store, rank, size = next(rendezvous("env://"))
        backend = "nccl" if has_cuda else "gloo"
        distributed.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=COLLECTIVE_TIMEOUT)
        group = distributed.new_group(backend="gloo", timeout=WAIT_TIMEOUT)
    except (distributed.DistError, ValueError) as error:
        what = f"process group initialization failed: {error}"
        where = f"MASTER_ADDR {os.environ['MASTER_ADDR']}, MASTER_PORT {os.environ['MASTER_PORT']}"
        raise HarnessError(where, what, f"use a free port of this machine, or {SHARED_RUN_COMMAND}") from error
    return PrefixStore("harness", store), group
