"""The processes that were launched get to know each other, and end together."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

from harness.distributed.failure import News
from harness.distributed.launch import INSTEAD, number
from harness.distributed.processes import ALONE, Ranks
from harness.errors import HarnessError

PATIENCE = timedelta(days=365)
"""How long the others wait for the main process: a launcher ends them when it dies."""

PACE = timedelta(minutes=30)
"""How far apart the processes may be within a stage: while the main one writes a checkpoint, the others go on."""


@contextmanager
def together(count: int) -> Iterator[Ranks]:
    """Within it, the processes that were launched know each other. count: as `launched` gives it; 1: nothing happens.

    At the end the main process shares None: nothing more comes. When one fails, all end: the main one with the error,
    its own or, named by its process, another's; the others without a word. Raises HarnessError when there are more
    processes than GPUs, or when they do not find each other.
    """
    if count == 1:
        yield ALONE
        return
    from torch import distributed

    store, group = _connected(count)
    ranks = Ranks(number(), count, group)
    news = News(store, ranks)
    news.listen()
    try:
        yield ranks
        if ranks.main:
            ranks.share(None)
    except BaseException as error:
        ranks.end()
        told = news.failed(error)
        if told is not None:
            raise told from error
        raise
    news.close()
    ranks.meet()  # the store may be the main process's own, and go with it
    distributed.destroy_process_group()


def _connected(count: int) -> tuple[Any, Any]:
    """The launcher's store and the group for waiting, with the group that trains made on the way."""
    import torch
    from torch import distributed
    from torch.distributed.rendezvous import rendezvous

    cuda = torch.cuda.is_available()
    if cuda and torch.cuda.device_count() < count:
        what = f"{count} processes are started, and {torch.cuda.device_count()} GPU(s) are to be seen"
        raise HarnessError("torchrun", what, "start one process for each GPU, see CUDA_VISIBLE_DEVICES")
    if cuda:
        torch.cuda.set_device(number())
    try:
        store, rank, size = next(rendezvous("env://"))
        backend = "nccl" if cuda else "gloo"
        distributed.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=PACE)
        group = distributed.new_group(backend="gloo", timeout=PATIENCE)
    except (distributed.DistError, ValueError) as error:
        what = f"the processes cannot meet there: {error}"
        where = f"MASTER_ADDR {os.environ['MASTER_ADDR']}, MASTER_PORT {os.environ['MASTER_PORT']}"
        raise HarnessError(where, what, f"take a free port of this machine, or use {INSTEAD}") from error
    return distributed.PrefixStore("harness", store), group
