"""Choose the precision of the computation: autocast, and float32 for the weights whose dtype changes the result.

Under autocast a matrix product has the same result whether its weights are stored in 16 bits or as float32 with the
same values. The results of norms and embeddings depend on the dtype of their weights. These are float32 in every
model, so that a trained, a frozen and a reference model with equal weights have equal outputs, bit for bit.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from harness.model.device import resolve_dtype
from harness.model.quantization import quantization_method

_DTYPES_16_BIT = (torch.bfloat16, torch.float16)
_AUTOCAST_MODULES = (nn.Linear, Conv1D, nn.Conv1d, nn.Conv2d, nn.Conv3d)
_PEFT_NAME_PARTS = (("base_model.model.", ""), (".base_layer.", "."), (".original_module.", "."))


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


def weights_outside_autocast(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return, by name, the weights that autocast does not convert: those of norms, embeddings and fused experts.

    A weight that an embedding shares with the output head is one of them.
    """
    outside = {
        id(weight)
        for module in model.modules()
        if not isinstance(module, _AUTOCAST_MODULES)
        for weight in module.parameters(recurse=False)
    }
    return {name: weight for name, weight in model.named_parameters() if id(weight) in outside}


def norms_and_embeddings(model: nn.Module) -> list[nn.Parameter]:
    """Return the weights that are float32 in every precision: those outside autocast, without fused experts.

    Fused experts (MoE, 3 dimensions) keep their dtype, since they are most of a model's weights; see `match_dtypes`.
    """
    return [weight for weight in weights_outside_autocast(model).values() if weight.dim() < 3]


def upcast_norms_and_embeddings(model: nn.Module) -> None:
    """Convert the 16-bit ones of `norms_and_embeddings` to float32, in place."""
    for weight in norms_and_embeddings(model):
        if weight.dtype in _DTYPES_16_BIT:
            weight.data = weight.data.float()


def match_dtypes(reference: nn.Module, model: nn.Module) -> None:
    """Give the reference's weights outside autocast the dtypes that they have in `model`, in place.

    Args:
        reference: A model of the same architecture without an adapter.
        model: The model that it is compared with; may be a PEFT model.
    """
    dtypes = {}
    for name, weight in model.named_parameters():
        for part, replacement in _PEFT_NAME_PARTS:
            name = name.replace(part, replacement)
        dtypes[name] = weight.dtype
    for name, weight in weights_outside_autocast(reference).items():
        weight.data = weight.data.to(dtypes.get(name, weight.dtype))


def loaded_dtype(model: Any) -> torch.dtype:
    """Return the dtype that the model was loaded in: 16 bits if a weight is stored in 16 bits, else float32.

    That of a quantized model is the one that its matrix products have.
    """
    if quantization_method(model) is not None:
        dtype = model.config.dtype
        return dtype if dtype in _DTYPES_16_BIT else torch.float32
    return next((weight.dtype for weight in model.parameters() if weight.dtype in _DTYPES_16_BIT), torch.float32)


def loaded_autocast_context(model: nn.Module) -> AbstractContextManager[Any]:
    """Return the context in which to run a model whose `train.precision` is not known: that of its 16-bit weights."""
    dtype = loaded_dtype(model)
    if dtype == torch.float32:
        return contextlib.nullcontext()
    return torch.autocast(next(model.parameters()).device.type, dtype)


@contextlib.contextmanager
def stored_dtypes(model: nn.Module) -> Iterator[torch.dtype]:
    """Within the context, the weights are as they are stored: all in one 16-bit dtype if that changes no value.

    Yields:
        The dtype that the stored weights are to be loaded in: 16 bits, or float32 if a weight needs it.
    """
    floating = [weight for weight in model.parameters() if weight.is_floating_point()]
    narrow = loaded_dtype(model)
    originals = {weight: weight.data for weight in floating if weight.dtype != narrow}
    if not all(torch.equal(values.to(narrow).to(values.dtype), values) for values in originals.values()):
        yield torch.float32
        return
    try:
        for weight in originals:
            weight.data = weight.data.to(narrow)
        yield narrow
    finally:
        for weight, values in originals.items():
            weight.data = values
