"""What a launcher such as torchrun says of the processes that it started, and what of it is not supported."""

from __future__ import annotations

import os
from collections.abc import Mapping

from harness.errors import HarnessError

UNSUPPORTED_SHARDING = {
    "ACCELERATE_USE_FSDP": "FSDP",
    "ACCELERATE_USE_DEEPSPEED": "DeepSpeed",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "a parallelism of accelerate's",
}
"""What `accelerate launch` says of itself, and what it means."""

MPI_SIZE_VARIABLES = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE")

TORCHRUN_COMMAND = "torchrun --standalone --nproc-per-node N -m harness run SPEC"


def get_rank(environment: Mapping[str, str] = os.environ) -> int:
    """This process's number; 0 where no launcher started several."""
    given = [environment.get(key, "") for key in ("WORLD_SIZE", "RANK")]
    count, rank = (int(one) if one.isdecimal() else 0 for one in given)
    return rank if count > 1 else 0


def get_world_size(environment: Mapping[str, str] = os.environ) -> int:
    """How many processes were started to share the work; 1 without a launcher.

    Raises HarnessError when they were started in a way that is not supported: on several nodes, with sharded weights,
    by MPI, with restarts, or in a precision that is not the spec's.
    """
    for key, name in UNSUPPORTED_SHARDING.items():
        if environment.get(key, "").lower() in ("1", "true", "yes", "on"):
            raise HarnessError(
                key, f"{name} is not supported, weights are whole in every process", f"use {TORCHRUN_COMMAND}"
            )
    precision = environment.get("ACCELERATE_MIXED_PRECISION", "no")
    if precision not in ("", "no"):
        what = f"the launcher asks for {precision}, and the precision is the spec's"
        raise HarnessError("ACCELERATE_MIXED_PRECISION", what, "unset it, and set train.precision instead")
    count = _read_process_count(environment, "WORLD_SIZE", 1)
    if count == 1:
        for key in MPI_SIZE_VARIABLES:
            if _read_process_count(environment, key, 1) > 1:
                raise HarnessError(
                    key, "processes that MPI started do not know of each other", f"use {TORCHRUN_COMMAND}"
                )
        return 1
    for key in ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        if not environment.get(key):
            raise HarnessError(key, f"WORLD_SIZE is {count}, and this is not set", f"use {TORCHRUN_COMMAND}")
    here = _read_process_count(environment, "LOCAL_WORLD_SIZE", count)
    if here != count or _read_process_count(environment, "LOCAL_RANK", 0) != get_rank(environment):
        what = f"{count} processes on more than one node are not supported"
        raise HarnessError("torchrun", what, "start all of them on one, with --nnodes 1")
    if _read_process_count(environment, "TORCHELASTIC_MAX_RESTARTS", 0):
        hint = "leave --max-restarts out, and go on with a run that failed: harness run --resume RUN"
        raise HarnessError("torchrun", "a restart by the launcher would begin another run", hint)
    return count


def _read_process_count(environment: Mapping[str, str], key: str, default: int) -> int:
    text = environment.get(key, "")
    if text and not text.isdecimal():
        raise HarnessError(key, f"{text!r} is no number of processes", f"unset it, or use {TORCHRUN_COMMAND}")
    return int(text) if text else default
