"""Low-rank changes of the weights that are frozen, stored in a second adapter next to the one that is trained.

A LoRA adapter learns s B A for each weight W. Some methods need a second, frozen change: the negative of the adapter's
initial value (PiSSA), what earlier stages learned (O-LoRA), or a part of a stage's initial weights (WiSE-FT). They are
summed in one more adapter, named `kept`:

    effective weight = W + s B A         + sum of the frozen B A
                           `default`       `kept`
                           (trained)       (frozen)

W itself never changes. With adapters off, the model is the base model bit for bit. Saved, both adapters become one.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

TRAINABLE_ADAPTER = "default"
"""PEFT's name of the adapter that is trained."""

FROZEN_ADAPTER = "kept"

LoraFactors = Mapping[str, tuple[Tensor, Tensor]]
"""Name of an adapted layer -> A of shape (R, k) and B of shape (d, R), whose product B A is added to its weight."""

ADAPTER_WEIGHTS_FILE = "adapter_model.safetensors"


def lora_layers(model: Any) -> dict[str, Any]:
    """Return the layers with a LoRA adapter, by their name in the PEFT model; none for a model without one."""
    from peft.tuners.lora import LoraLayer

    return {name: module for name, module in model.named_modules() if isinstance(module, LoraLayer)}


def is_linear(layer: Any) -> bool:
    """Return whether a layer with a LoRA adapter is a linear layer, and so computes with W + s B A.

    False for embeddings, convolutions, attention modules, and fused experts (peft's ParamWrapper). This module supports
    linear layers only.
    """
    from peft.tuners.lora import layer as lora_layer

    others = (lora_layer.Embedding, lora_layer._ConvNd, lora_layer.MultiheadAttention, lora_layer.ParamWrapper)
    return not isinstance(layer, others)


def frozen_lora(model: Any) -> dict[str, tuple[Tensor, Tensor]]:
    """Return the frozen factors of each layer, sharing memory with the model; empty when there are none."""
    if FROZEN_ADAPTER not in getattr(model, "peft_config", {}):
        return {}
    return {
        name: (layer.lora_A[FROZEN_ADAPTER].weight.detach(), layer.lora_B[FROZEN_ADAPTER].weight.detach())
        for name, layer in lora_layers(model).items()
    }


def add_frozen_lora(model: Any, factors: LoraFactors, *, replace: bool = False) -> None:
    """Add B A to every adapted layer permanently, frozen, in float32. The trained adapter does not change.

    Args:
        model: A PEFT model with a LoRA adapter.
        factors: The factors of every adapted layer, all of one rank R. Each call costs R columns.
        replace: Whether to replace the frozen factors (empty `factors`: remove them) instead of adding to them.
    """
    existing = {} if replace else frozen_lora(model)
    # Contiguous, as a file gives them back: the last bit of a product depends on the strides of its factors.
    new = {
        name: tuple(t.detach().to(torch.float32, copy=True, memory_format=torch.contiguous_format) for t in pair)
        for name, pair in factors.items()
    }
    if existing:
        new = {
            name: (torch.cat([existing[name][0], a]), torch.cat([existing[name][1], b], dim=1))
            for name, (a, b) in new.items()
        }
    requires_grad = {weight: weight.requires_grad for weight in model.parameters()}
    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT warns of a second adapter, which is intended here
        if FROZEN_ADAPTER in model.peft_config:
            model.delete_adapter(FROZEN_ADAPTER)
        if new:
            model.add_adapter(FROZEN_ADAPTER, _plain_lora_config(model, rank=next(iter(new.values()))[0].shape[0]))
        # On the tuner only: the PEFT model itself knows a single active adapter, whose config it looks up.
        model.base_model.set_adapter([TRAINABLE_ADAPTER, FROZEN_ADAPTER] if new else [TRAINABLE_ADAPTER])
    with torch.no_grad():
        for name, layer in lora_layers(model).items() if new else ():
            layer.lora_A[FROZEN_ADAPTER].weight.data = new[name][0].to(layer.lora_A[TRAINABLE_ADAPTER].weight.device)
            layer.lora_B[FROZEN_ADAPTER].weight.data = new[name][1].to(layer.lora_A[TRAINABLE_ADAPTER].weight.device)
    for weight in model.parameters():
        weight.requires_grad_(requires_grad.get(weight, False))


def save_joined_adapter(model: Any, folder: Path) -> None:
    """Write the trained adapter and the frozen factors as one plain LoRA adapter, whose rank is the sum of theirs."""
    from safetensors.torch import save_file

    state = {}
    for name, layer in lora_layers(model).items():
        a = [layer.lora_A[TRAINABLE_ADAPTER].weight, layer.lora_A[FROZEN_ADAPTER].weight]
        b = [
            layer.lora_B[TRAINABLE_ADAPTER].weight * layer.scaling[TRAINABLE_ADAPTER],
            layer.lora_B[FROZEN_ADAPTER].weight,
        ]
        state[f"{name}.lora_A.weight"] = torch.cat([t.detach().float() for t in a]).cpu().contiguous()
        state[f"{name}.lora_B.weight"] = torch.cat([t.detach().float() for t in b], dim=1).cpu().contiguous()
    save_file(state, folder / ADAPTER_WEIGHTS_FILE, metadata={"format": "pt"})
    config = _plain_lora_config(model, rank=next(tensor.shape[0] for key, tensor in state.items() if ".lora_A." in key))
    config.inference_mode = True
    config.save_pretrained(folder)


def restore_frozen_lora(model: Any, folder: Path) -> None:
    """Replace the model's frozen factors with those of a PEFT checkpoint in `folder`."""
    from safetensors.torch import load_file

    file = folder / FROZEN_ADAPTER / ADAPTER_WEIGHTS_FILE
    state = load_file(file) if file.exists() else {}
    names = lora_layers(model) if state else ()
    factors = {name: (state[f"{name}.lora_A.weight"], state[f"{name}.lora_B.weight"]) for name in names}
    add_frozen_lora(model, factors, replace=True)


def _plain_lora_config(model: Any, rank: int) -> Any:
    """Return the config of the trained adapter, changed to this rank and scale 1."""
    config = copy.deepcopy(model.peft_config[TRAINABLE_ADAPTER])
    config.r = config.lora_alpha = rank
    config.use_rslora = False
    config.lora_dropout = 0.0
    config.init_lora_weights = True
    return config
