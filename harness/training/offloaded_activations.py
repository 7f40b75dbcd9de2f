"""`train.offload_activations`: the layer inputs of gradient checkpointing are in main memory until the backward pass.

    forward    layer 1 ──> input of layer 2 ──> layer 2 ──> …      each input goes to main memory in a second stream
    backward   layer 1 <── input of layer 2 <── layer 2 <── …      and back when its layer is recomputed

TRL's implementation is used. The chunks of the loss are not moved: their backward pass follows at once.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import nn


def activation_offloading(
    model: nn.Module, settings: Mapping[str, Any], device: torch.device
) -> AbstractContextManager[Any]:
    """Return the context of a micro-batch's forward and backward pass. It may be entered again for the next one.

    Args:
        model: The model, ready for training. Its weights are not moved.
        settings: The stage's `train`.
        device: The device of the computation. On a CPU nothing is moved, and a warning says so.
    """
    if not settings.get("offload_activations", False):
        return nullcontext()
    if device.type == "cpu":
        warnings.warn(
            "train.offload_activations has no effect on a CPU, whose activations are in main memory", stacklevel=2
        )
        return nullcontext()
    from trl.models.activation_offloading import OffloadActivations

    offloading: Any = OffloadActivations()
    offloading.update_model_params(model)
    context: AbstractContextManager[Any] = offloading
    return context
