"""Measure the memory of a stage, by kind."""

from __future__ import annotations

import resource
import sys
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from harness.interfaces.mitigation import Mitigation


def measure_stage_memory(model: nn.Module, optimizer: Any, mitigations: Iterable[Mitigation]) -> dict[str, int]:
    """Return the bytes that the training of a stage takes, by kind. Call it at the end of the stage.

    Args:
        model: The model that is trained.
        optimizer: Its optimizer, with the state of all trained weights; None: without one.
        mitigations: The mitigations of the stage.

    Returns:
        `weights`; `gradients` of the trained weights; `optimizer`; `mitigations`, the tensors and models that they
        hold; and `peak`. On a CPU the peak is the largest resident memory of the process since its start; on CUDA the
        largest allocated memory of the device since `reset_peak_memory`.
    """
    weights = list(model.parameters())
    known = {storage_id(weight) for weight in [*weights, *model.buffers()]}
    state = {} if optimizer is None else optimizer.state
    return {
        "weights": _total_bytes(weights),
        "gradients": sum(_own_part(weight).nbytes for weight in weights if weight.requires_grad),
        "optimizer": _total_bytes(_tensors_in(dict(enumerate(state.values())))),
        "mitigations": _total_bytes(
            tensor for m in mitigations for tensor in _tensors_in(vars(m)) if storage_id(tensor) not in known
        ),
        "peak": peak_memory(_computing_device(weights[0])),
    }


def reset_peak_memory(device: torch.device) -> None:
    """Start to measure the peak of a CUDA device again; that of a process cannot be reset."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak_memory(device: torch.device) -> int:
    """Return the peak of a CUDA device, or of this process, in bytes."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _total_bytes(tensors: Iterable[Tensor]) -> int:
    """Return the bytes of tensors; those that share memory are counted once."""
    own = [_own_part(tensor) for tensor in tensors]
    sizes = {storage_id(tensor): tensor.untyped_storage().nbytes() for tensor in own}
    return sum(sizes.values())


def storage_id(tensor: Tensor) -> int:
    """Return what identifies the memory of a tensor, also on the meta device; views of it have the same."""
    return int(_own_part(tensor).untyped_storage()._cdata)


def _computing_device(weight: Tensor) -> torch.device:
    """Return the device that computes with a weight: parts of it may be stored in main memory."""
    return torch.device(weight.device_mesh.device_type) if isinstance(weight, DTensor) else weight.device


def _own_part(tensor: Tensor) -> Tensor:
    """Return the part of a sharded tensor that this process has; any other tensor as it is."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _tensors_in(value: Any) -> Iterator[Tensor]:
    """Yield the tensors in nested dicts, in lists of tensors, and of models."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, nn.Module):
        yield from value.parameters()
    elif isinstance(value, Mapping):
        for element in value.values():
            yield from _tensors_in(element)
    elif isinstance(value, list | tuple) and value and isinstance(value[0], Tensor | nn.Module | Mapping):
        for element in value:
            yield from _tensors_in(element)
