"""Choose the precision of the computation: autocast, and float32 for the weights that are trained."""

from __future__ import annotations

import contextlib
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import nn

from harness.model.device import resolve_dtype

_DTYPES_16_BIT = (torch.bfloat16, torch.float16)


def autocast_dtype(precision: str, device: torch.device) -> torch.dtype | None:
    """Return the 16-bit dtype of the autocast that `precision` means on the device; None: float32 throughout."""
    dtype = resolve_dtype(precision, device)
    return None if dtype == torch.float32 else dtype


def autocast_context(model: nn.Module, precision: str) -> AbstractContextManager[Any]:
    """Return the context in which to run the model: autocast to the 16-bit dtype of `precision`, or none."""
    device = next(model.parameters()).device
    dtype = autocast_dtype(precision, device)
    return contextlib.nullcontext() if dtype is None else torch.autocast(device.type, dtype)


def upcast_trainable(model: nn.Module, *, include_frozen: bool = False) -> dict[nn.Parameter, torch.dtype]:
    """Convert every 16-bit weight that is trained to float32, in place.

    A step is often smaller than the rounding of 16 bits and would be lost. Run the model under `autocast_context`
    afterwards, which computes in 16 bits again.

    Args:
        model: The model.
        include_frozen: Whether to convert frozen weights too: without autocast, dtypes cannot be mixed.

    Returns:
        The converted weights and the dtype that each one had.
    """
    original_dtypes = {}
    for weight in model.parameters():
        if weight.dtype in _DTYPES_16_BIT and (include_frozen or weight.requires_grad):
            original_dtypes[weight] = weight.dtype
            weight.data = weight.data.float()
    return original_dtypes
