"""What of a model can move, in the space of its weights: parameters that are trained, and layers with a LoRA adapter.

A layer with an adapter computes with W + s B A; what is learned is the change of W, and A and B are one of many ways to
write it: (B M^-1)(M A) is the same change for any M. So what holds a model near an anchor must look at s B A: in the
space of A and B the Fisher information of A is 0 at the start, where B = 0, and the distance depends on M.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from harness.errors import HarnessError
from harness.model import frozen_lora, save


@dataclass(frozen=True)
class TrainableWeights:
    """weights: parameters that are trained themselves, by name, tied ones once. lora_layers: those whose weight an
    adapter changes, by the name of that weight."""

    weights: dict[str, nn.Parameter]
    lora_layers: dict[str, Any]


def find_trainable_weights(model: nn.Module, where: str) -> TrainableWeights:
    """What can move. where: who asks, for errors.

    Raises HarnessError when nothing can, or when the change of an adapted layer is not s B A.
    """
    layers = {}
    factors = set()
    for name, layer in frozen_lora.lora_layers(model).items() if save.is_peft_model(model) else ():
        own = {id(w) for part in (layer.lora_A, layer.lora_B) for w in part.parameters() if w.requires_grad}
        if any(
            w.requires_grad for part in (layer.lora_embedding_A, layer.lora_embedding_B) for w in part.values()
        ) or any(a.dim() != 2 for a, _, _ in _active_factors(layer)):
            kind = type(layer.get_base_layer()).__name__
            raise HarnessError(where, f"{name} is of the kind {kind} and has an adapter", "adapt linear layers alone")
        if not own:
            continue
        if any(adapter in layer.lora_variant for adapter in layer.active_adapters):
            raise HarnessError(
                where, f"the change of {name} is not s B A but that of a variant", "set mitigations.lora.dora to false"
            )
        layers[f"{name}.weight"] = layer
        factors |= own
    weights = {name: w for name, w in model.named_parameters() if w.requires_grad and id(w) not in factors}
    if not weights and not layers:
        raise HarnessError(where, "no weight of the model is trainable", "check what freezes them")
    return TrainableWeights(weights, layers)


def lora_factors(layer: Any) -> list[tuple[Tensor, Tensor]]:
    """All pairs of A and s B that the layer computes with now, frozen ones too; their products sum to its change."""
    return [(a.detach(), scale * b.detach()) for a, b, scale in _active_factors(layer)]


def trainable_factors(layer: Any) -> tuple[list[tuple[Tensor, Tensor]], list[float]]:
    """The pairs of A and B with a gradient, and their scales s."""
    found = [(a, b, scale) for a, b, scale in _active_factors(layer) if a.grad is not None and b.grad is not None]
    return [(a, b) for a, b, _ in found], [scale for _, _, scale in found]


def _active_factors(layer: Any) -> Iterator[tuple[Tensor, Tensor, float]]:
    for adapter in layer.active_adapters:
        if adapter in layer.lora_A:
            yield layer.lora_A[adapter].weight, layer.lora_B[adapter].weight, float(layer.scaling[adapter])
