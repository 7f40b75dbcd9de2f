"""Read from the environment which processes a launcher such as torchrun started; reject unsupported launches."""

from __future__ import annotations

import os
from collections.abc import Mapping

from harness.errors import HarnessError

UNSUPPORTED_SHARDING = {
    "ACCELERATE_USE_FSDP": "FSDP",
    "ACCELERATE_USE_DEEPSPEED": "DeepSpeed",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "accelerate's parallelism config",
}
"""Variables that `accelerate launch` sets, and the way of sharding that each one means."""

MPI_SIZE_VARIABLES = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE")

SHARED_RUN_COMMAND = "harness run SPEC --gpus N"
"""Starts the processes of one machine. Several machines need a launcher such as torchrun."""


def get_rank(environment: Mapping[str, str] = os.environ) -> int:
    """Return the rank of this process; 0 when no launcher started several."""
    values = [environment.get(key, "") for key in ("WORLD_SIZE", "RANK")]
    world_size, rank = (int(value) if value.isdecimal() else 0 for value in values)
    return rank if world_size > 1 else 0


def get_local_rank(environment: Mapping[str, str] = os.environ) -> int:
    """Return the number of this process on its node, from 0, which is also the number of its GPU."""
    return _read_process_count(environment, "LOCAL_RANK", 0) if get_world_size(environment) > 1 else 0


def get_local_world_size(environment: Mapping[str, str] = os.environ) -> int:
    """Return how many of the processes that share the work are on this node."""
    world_size = get_world_size(environment)
    return _read_process_count(environment, "LOCAL_WORLD_SIZE", world_size) if world_size > 1 else 1


def get_world_size(environment: Mapping[str, str] = os.environ) -> int:
    """Return the number of processes that share the work, on all nodes; 1 without a launcher.

    Raises:
        HarnessError: The launch is not supported: sharded weights, MPI, restarts, a precision that is not the spec's,
            or numbers of processes that do not fit together.
    """
    for key, name in UNSUPPORTED_SHARDING.items():
        if environment.get(key, "").lower() in ("1", "true", "yes", "on"):
            what = f"{name} is not supported: the spec determines how weights are divided, by train.sharding"
            raise HarnessError(key, what, f"use {SHARED_RUN_COMMAND}")
    precision = environment.get("ACCELERATE_MIXED_PRECISION", "no")
    if precision not in ("", "no"):
        what = f"the launcher sets the precision {precision}, but the spec determines the precision"
        raise HarnessError("ACCELERATE_MIXED_PRECISION", what, "unset it, and set train.precision instead")
    world_size = _read_process_count(environment, "WORLD_SIZE", 1)
    if world_size == 1:
        for key in MPI_SIZE_VARIABLES:
            if _read_process_count(environment, key, 1) > 1:
                raise HarnessError(key, "processes started by MPI are not supported", f"use {SHARED_RUN_COMMAND}")
        return 1
    for key in ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        if not environment.get(key):
            raise HarnessError(key, f"WORLD_SIZE is {world_size}, but this is not set", f"use {SHARED_RUN_COMMAND}")
    _check_node(environment, world_size)
    if _read_process_count(environment, "TORCHELASTIC_MAX_RESTARTS", 0):
        hint = "omit --max-restarts, and resume a failed run: harness run --resume RUN"
        raise HarnessError("torchrun", "a restart by the launcher would start another run", hint)
    return world_size


def _check_node(environment: Mapping[str, str], world_size: int) -> None:
    """Raise HarnessError unless this process can be one of those on its node."""
    rank, local_rank = get_rank(environment), _read_process_count(environment, "LOCAL_RANK", 0)
    local_world_size = _read_process_count(environment, "LOCAL_WORLD_SIZE", world_size)
    if not environment.get("LOCAL_WORLD_SIZE") and local_rank != rank:
        what = f"there are several nodes (RANK {rank}, LOCAL_RANK {local_rank}), but this is not set"
        raise HarnessError("LOCAL_WORLD_SIZE", what, "set it to the number of processes on the node, or use torchrun")
    if rank >= world_size or local_world_size > world_size or local_rank >= local_world_size or local_rank > rank:
        names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
        what = f"do not fit together: {', '.join(environment.get(name) or 'not set' for name in names)}"
        raise HarnessError(", ".join(names), what, "ranks and local ranks count from 0; torchrun sets all of them")


def _read_process_count(environment: Mapping[str, str], key: str, default: int) -> int:
    text = environment.get(key, "")
    if text and not text.isdecimal():
        raise HarnessError(key, f"{text!r} is not a number of processes", f"unset it, or use {SHARED_RUN_COMMAND}")
    return int(text) if text else default
