"""The processes that were launched get to know each other, and end together."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

from harness.distributed.failure import FailureWatcher
from harness.distributed.launch import TORCHRUN_COMMAND, get_rank
from harness.distributed.processes import SINGLE_PROCESS, Processes
from harness.errors import HarnessError

WAIT_TIMEOUT = timedelta(days=365)
"""How long the others wait for the main process: a launcher ends them when it dies."""

COLLECTIVE_TIMEOUT = timedelta(minutes=30)
"""How far apart the processes may be within a stage: while the main one writes a checkpoint, the others go on."""


@contextmanager
def init_processes(world_size: int) -> Iterator[Processes]:
    """Within it, the processes that were launched know each other. world_size: as `get_world_size` gives it; 1: nothing
    happens.

    At the end the main process shares None: nothing more comes. When one fails, all end: the main one with the error,
    its own or, named by its process, another's; the others without a word. Raises HarnessError when there are more
    processes than GPUs, or when they do not find each other.
    """
    if world_size == 1:
        yield SINGLE_PROCESS
        return
    from torch import distributed

    store, group = _init_process_group(world_size)
    ranks = Processes(get_rank(), world_size, group)
    news = FailureWatcher(store, ranks)
    news.start()
    try:
        yield ranks
        if ranks.is_main:
            ranks.broadcast(None)
    except BaseException as error:
        ranks.mark_ending()
        told = news.handle_failure(error)
        if told is not None:
            raise told from error
        raise
    news.stop()
    ranks.barrier()  # the store may be the main process's own, and go with it
    distributed.destroy_process_group()


def _init_process_group(world_size: int) -> tuple[Any, Any]:
    """The launcher's store and the group for waiting, with the group that trains made on the way."""
    import torch
    from torch import distributed
    from torch.distributed.rendezvous import rendezvous

    cuda = torch.cuda.is_available()
    if cuda and torch.cuda.device_count() < world_size:
        what = f"{world_size} processes are started, and {torch.cuda.device_count()} GPU(s) are to be seen"
        raise HarnessError("torchrun", what, "start one process for each GPU, see CUDA_VISIBLE_DEVICES")
    if cuda:
        torch.cuda.set_device(get_rank())
    try:
        store, rank, size = next(rendezvous("env://"))
        backend = "nccl" if cuda else "gloo"
        distributed.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=COLLECTIVE_TIMEOUT)
        group = distributed.new_group(backend="gloo", timeout=WAIT_TIMEOUT)
    except (distributed.DistError, ValueError) as error:
        what = f"the processes cannot meet there: {error}"
        where = f"MASTER_ADDR {os.environ['MASTER_ADDR']}, MASTER_PORT {os.environ['MASTER_PORT']}"
        raise HarnessError(where, what, f"take a free port of this machine, or use {TORCHRUN_COMMAND}") from error
    return distributed.PrefixStore("harness", store), group
