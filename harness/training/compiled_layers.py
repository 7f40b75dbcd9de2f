"""`train.compile`: the layers of a model, compiled by torch for the duration of a stage.

Only the repeated layers are compiled: they are alike, so one compilation serves all of them. Embeddings, head and loss
stay as they are, and so do attention within rows, which waits for the device, and everything outside training.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec

import torch
from transformers import AttentionInterface, PreTrainedModel

from harness.errors import HarnessError
from harness.model import row_attention
from harness.model.decoder_layers import find_decoder_layers

BACKEND = "inductor"
"""The compiler of torch."""

MIN_CAPABILITY = (7, 0)
"""Compute capability of the oldest GPU for which Triton generates code."""


def can_compile(device: torch.device) -> bool:
    """Return whether layers on a device are compiled; a warning says why not.

    Raises:
        HarnessError: The device is a GPU, and its compiler is missing.
    """
    if device.type != "cuda":
        warnings.warn(
            f"train.compile has no effect on {device.type}: compiling takes longer there than it saves, since nearly "
            "all of the time is in matrix products",
            stacklevel=3,
        )
        return False
    if find_spec("triton") is None:
        raise HarnessError("train.compile", "torch.compile needs Triton", "pip install triton, or set it to false")
    capability = torch.cuda.get_device_capability(device)
    if capability < MIN_CAPABILITY:
        what = f"torch.compile has no code for this GPU, of compute capability {capability[0]}.{capability[1]}"
        raise HarnessError("train.compile", what, "set it to false")
    return True


@contextmanager
def compiled_layers(model: PreTrainedModel, enabled: bool) -> Iterator[bool]:
    """Compile the layers of a model for the duration of the context.

    Args:
        model: The model; may be a PEFT model. Names of its weights stay the same.
        enabled: `train.compile` of the stage.

    Yields:
        Whether they are compiled.

    Raises:
        HarnessError: The device has no compiler, or the model no list of layers.
    """
    if not enabled or not can_compile(next(model.parameters()).device):
        yield False
        return
    layers = find_decoder_layers(model)
    if not layers:
        what = f"a {model.config.model_type} model has no list of layers that could be compiled"
        raise HarnessError("train.compile", what, "set it to false")
    # The rows of a line are Python objects, found on the host.
    AttentionInterface.register(row_attention.NAME, torch.compiler.disable(row_attention.attend_within_rows))
    for layer in layers:
        layer.compile(backend=BACKEND, dynamic=True)
    try:
        yield True
    finally:
        for layer in layers:
            layer._compiled_call_impl = None
        AttentionInterface.register(row_attention.NAME, row_attention.attend_within_rows)


def without_compilation(callback: Callable[[int], bool]) -> Callable[[int], bool]:
    """Return `callback` such that layers are not compiled for it: an evaluation has other shapes than training."""

    def eager_callback(step: int) -> bool:
        with torch.compiler.set_stance("force_eager"):
            return callback(step)

    return eager_callback
