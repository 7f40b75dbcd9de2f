"""The trainable part of a model in the space of its weights: trained parameters, and layers with a LoRA adapter.

A layer with an adapter computes with W + s B A. It learns the change of W; A and B are one of many ways to write it:
(B M^-1)(M A) is the same change for any invertible M. A penalty on the distance to an anchor must therefore use s B A.
In the space of A and B the Fisher information of A is 0 at the start, where B = 0, and the distance depends on M.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from harness.errors import HarnessError
from harness.model import frozen_lora, save
from harness_mitigations.linear_layers import require_linear_adapters


@dataclass(frozen=True)
class TrainableWeights:
    """What can change in a model.

    Attributes:
        weights: parameters that are trained themselves, by name; tied ones appear once.
        lora_layers: peft layers whose weight changes by an adapter, by the name of that weight.
    """

    weights: dict[str, nn.Parameter]
    lora_layers: dict[str, Any]


def find_trainable_weights(model: nn.Module, where: str) -> TrainableWeights:
    """Find the trainable parameters and the layers with a trainable adapter.

    Args:
        model: a model, with or without a PEFT adapter.
        where: the spec key of the caller, for errors.

    Raises:
        HarnessError: nothing is trainable, or the change of an adapted layer is not s B A.
    """
    if save.is_peft_model(model):
        require_linear_adapters(where, model)
    lora_layers = {}
    factor_ids = set()
    for name, layer in frozen_lora.lora_layers(model).items() if save.is_peft_model(model) else ():
        trainable_ids = {
            id(weight)
            for factors in (layer.lora_A, layer.lora_B)
            for weight in factors.parameters()
            if weight.requires_grad
        }
        if not trainable_ids:
            continue
        if any(adapter in layer.lora_variant for adapter in layer.active_adapters):
            what = f"the change of {name} is not s B A: its adapter is a variant of LoRA"
            raise HarnessError(where, what, "set mitigations.lora.dora to false")
        lora_layers[f"{name}.weight"] = layer
        factor_ids |= trainable_ids
    weights = {name: w for name, w in model.named_parameters() if w.requires_grad and id(w) not in factor_ids}
    if not weights and not lora_layers:
        raise HarnessError(where, "no weight of the model is trainable", "check the mitigations that freeze weights")
    return TrainableWeights(weights, lora_layers)


def lora_factors(layer: Any) -> list[tuple[Tensor, Tensor]]:
    """Return all pairs (A, s B) that the layer computes with, frozen ones included; their products sum to its change.

    Args:
        layer: a peft layer with a LoRA adapter.

    Returns:
        Pairs of A, of shape (r, k), and s B, of shape (d, r).
    """
    return [(a.detach(), scale * b.detach()) for a, b, scale in _active_factors(layer)]


def trainable_factors(layer: Any) -> tuple[list[tuple[Tensor, Tensor]], list[float]]:
    """Return the pairs (A, B) that have a gradient, and their scales s.

    Args:
        layer: a peft layer with a LoRA adapter.
    """
    factors = [(a, b, scale) for a, b, scale in _active_factors(layer) if a.grad is not None and b.grad is not None]
    return [(a, b) for a, b, _ in factors], [scale for _, _, scale in factors]


def _active_factors(layer: Any) -> Iterator[tuple[Tensor, Tensor, float]]:
    for adapter in layer.active_adapters:
        if adapter in layer.lora_A:
            yield layer.lora_A[adapter].weight, layer.lora_B[adapter].weight, float(layer.scaling[adapter])
