"""Low-rank changes of the weights that are kept, frozen, beside the adapter that trains.

A LoRA adapter learns s B A for each weight W. Some methods need a second, frozen change beside it: the minus of what
the adapter started from (PiSSA), what earlier stages learned (O-LoRA), a part of the weights a stage began with
(WiSE-FT). Here they are summed up in one more adapter, `kept`, so that W itself never changes: with adapters off the
model is the base model bit for bit, whatever was kept. Saved, both become one plain adapter.
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
"""peft's name of the adapter that trains."""

FROZEN_ADAPTER = "kept"

LoraFactors = Mapping[str, tuple[Tensor, Tensor]]
"""Name of an adapted layer -> A of shape (R, k) and B of shape (d, R), whose product B A is added to its weight."""

ADAPTER_WEIGHTS_FILE = "adapter_model.safetensors"


def lora_layers(model: Any) -> dict[str, Any]:
    """The layers with a LoRA adapter, by their name in the PEFT model; none for a model without one."""
    from peft.tuners.lora import LoraLayer

    return {name: part for name, part in model.named_modules() if isinstance(part, LoraLayer)}


def frozen_lora(model: Any) -> dict[str, tuple[Tensor, Tensor]]:
    """What is kept beside the adapter, by layer, as it stands in the model; empty when nothing is."""
    if FROZEN_ADAPTER not in getattr(model, "peft_config", {}):
        return {}
    return {
        name: (layer.lora_A[FROZEN_ADAPTER].weight.detach(), layer.lora_B[FROZEN_ADAPTER].weight.detach())
        for name, layer in lora_layers(model).items()
    }


def add_frozen_lora(model: Any, factors: LoraFactors, *, replace: bool = False) -> None:
    """Add B A to every adapted layer's change for good, frozen, in float32.

    factors: for every adapted layer, of one rank; added to what is kept, which costs their rank, or, with `replace`,
    put in its place (empty: nothing is kept any more). The adapter that trains stays as it is.
    """
    before = {} if replace else frozen_lora(model)
    # Laid out as a file gives them back: the last bit of a product depends on the strides of its factors.
    new = {
        name: tuple(t.detach().to(torch.float32, copy=True, memory_format=torch.contiguous_format) for t in pair)
        for name, pair in factors.items()
    }
    if before:
        new = {
            name: (torch.cat([before[name][0], a]), torch.cat([before[name][1], b], dim=1))
            for name, (a, b) in new.items()
        }
    moving = {weight: weight.requires_grad for weight in model.parameters()}
    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # peft says that a second adapter is there, which is what is wanted
        if FROZEN_ADAPTER in model.peft_config:
            model.delete_adapter(FROZEN_ADAPTER)
        if new:
            model.add_adapter(FROZEN_ADAPTER, _plain_lora_config(model, rank=next(iter(new.values()))[0].shape[0]))
        # On the tuner alone: the PEFT model itself knows one active adapter, whose config it looks up.
        model.base_model.set_adapter([TRAINABLE_ADAPTER, FROZEN_ADAPTER] if new else [TRAINABLE_ADAPTER])
    with torch.no_grad():
        for name, layer in lora_layers(model).items() if new else ():
            layer.lora_A[FROZEN_ADAPTER].weight.data = new[name][0].to(layer.lora_A[TRAINABLE_ADAPTER].weight.device)
            layer.lora_B[FROZEN_ADAPTER].weight.data = new[name][1].to(layer.lora_A[TRAINABLE_ADAPTER].weight.device)
    for weight in model.parameters():
        weight.requires_grad_(moving.get(weight, False))


def save_joined_adapter(model: Any, folder: Path) -> None:
    """Write the adapter that trains and what is kept as one plain LoRA adapter of the sum of their ranks."""
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
    """Keep what a checkpoint of peft in `folder` kept, in place of what the model keeps now."""
    from safetensors.torch import load_file

    file = folder / FROZEN_ADAPTER / ADAPTER_WEIGHTS_FILE
    state = load_file(file) if file.exists() else {}
    names = lora_layers(model) if state else ()
    add_frozen_lora(model, {n: (state[f"{n}.lora_A.weight"], state[f"{n}.lora_B.weight"]) for n in names}, replace=True)


def _plain_lora_config(model: Any, rank: int) -> Any:
    """That of the adapter that trains, for a plain one of this rank and scale 1."""
    config = copy.deepcopy(model.peft_config[TRAINABLE_ADAPTER])
    config.r = config.lora_alpha = rank
    config.use_rslora = False
    config.lora_dropout = 0.0
    config.init_lora_weights = True
    return config
