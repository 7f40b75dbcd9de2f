"""Train weights within some directions of their singular value decomposition: PEFT's OSF layers (arXiv:2504.07097).

The singular triples of W = U S V^T form two groups: the largest stay frozen, the others, U' S' V', are trained.

    effective weight = W0 - M + U' S' V'
                       (frozen) (trained)

W0 is the base model's weight, which never changes. PEFT sets M to the trained triples of W0. Here a layer can be
decomposed again for a later stage. M then also removes what earlier stages changed in W0, so that with the adapter off
the model is still the base model, bit for bit.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from harness.model.frozen_lora import TRAINABLE_ADAPTER

REMOVED_COMPONENT_ATTRIBUTES = ("_osf_U_low_init", "_osf_S_low_init", "_osf_V_low_init")
"""PEFT's attributes for M, as its three factors."""

SvdFactors = tuple[Tensor, Tensor, Tensor]
"""A of shape (d, r), s of shape (r,) and B of shape (r, k) of the matrix A diag(s) B."""


def subspace_layers(model: Any) -> dict[str, Any]:
    """Return the layers that are trained within subspaces, by their name in the PEFT model."""
    return _osf_layers(model) if hasattr(model, "peft_config") else {}  # PEFT takes seconds to import


def trainable_svd_factors(layer: Any) -> SvdFactors:
    """Return the trained parameters: U' of shape (d, r), S' of shape (r,) and V' of shape (r, k)."""
    factors = layer.osf_svd_params[TRAINABLE_ADAPTER]
    return factors["U_low"], factors["S_low"], factors["V_low"]


def frozen_singular_vectors(layer: Any) -> tuple[Tensor | None, Tensor | None]:
    """Return U of shape (d, R) and V of shape (R, k) of the frozen triples, with orthonormal vectors.

    None for a side whose orthogonal complement is spanned by the factors of M; see `removed_component`.
    """
    u = dict(layer._osf_U_high.items()).get(TRAINABLE_ADAPTER)
    v = dict(layer._osf_V_high.items()).get(TRAINABLE_ADAPTER)
    return u, v


def removed_component(layer: Any) -> SvdFactors:
    """Return M, which is subtracted from the base model's weight."""
    a, s, b = (getattr(layer, name)[TRAINABLE_ADAPTER] for name in REMOVED_COMPONENT_ATTRIBUTES)
    return a, s, b


def is_modified(layer: Any) -> bool:
    """Return whether the layer's weight differs from W0. After a second decomposition: True."""
    pairs = zip(trainable_svd_factors(layer), removed_component(layer), strict=True)
    return not all(trained.shape == initial.shape and torch.equal(trained, initial) for trained, initial in pairs)


def effective_weight(layer: Any) -> Tensor:
    """Return the weight that the layer computes with, of shape (d, k), in float32."""
    base_weight = layer.get_base_layer().weight
    with torch.no_grad(), _autocast_disabled(base_weight):
        weight: Tensor = base_weight.float() + layer.get_delta_weight(TRAINABLE_ADAPTER).float()
    return weight


def decompose_layer(layer: Any) -> None:
    """Decompose the layer's current weight, in place, with the same rank; the layer computes the same afterwards.

    Uses float32 whatever the base model's dtype: directions rounded to 16 bits are not orthonormal, and repeated
    projections with them drift. The trained parameters stay the same objects. M has at most min(d, k) columns, whatever
    the number of stages.
    """
    rank = layer.effective_rank[TRAINABLE_ADAPTER]
    weight = effective_weight(layer)
    with torch.no_grad(), _autocast_disabled(weight):
        u, s, v = torch.linalg.svd(weight, full_matrices=False)
        # Contiguous, as a file gives them back: the last bit of a product depends on the strides of its factors.
        low = (u[:, rank:].contiguous(), s[rank:].contiguous(), v[rank:].contiguous())
        removed = _updated_removed_component(layer, low) if is_modified(layer) else low
        # M no longer spans the complement of the frozen directions, so these are stored for both sides.
        frozen = {"_osf_U_high": u[:, :rank], "_osf_V_high": v[:rank]}
        for name, tensor in {**dict(zip(REMOVED_COMPONENT_ATTRIBUTES, removed, strict=True)), **frozen}.items():
            getattr(layer, name)[TRAINABLE_ADAPTER] = tensor.clone(memory_format=torch.contiguous_format)
        for parameter, factor in zip(trainable_svd_factors(layer), low, strict=True):
            parameter.data = factor


def merged_state_dict(model: Any) -> dict[str, Tensor]:
    """Return the weights of a model without adapter that computes the same, by the base model's names, in float32.

    In 16 bits, a change of less than half of the last place would be lost. Tied weights stay one tensor.
    """
    base_model = model.get_base_model()
    layers = {f"{name}.weight": layer for name, layer in _osf_layers(base_model).items()}
    state: dict[str, Tensor] = {}
    by_storage: dict[int, Tensor] = {}
    for peft_name, tensor in base_model.state_dict().items():
        name = peft_name.replace(".base_layer.", ".")
        if ".osf_svd_params." in peft_name:
            continue
        if name in layers:
            state[name] = effective_weight(layers[name])
            continue
        weight = tensor.float() if tensor.is_floating_point() else tensor
        state[name] = by_storage.setdefault(tensor.data_ptr(), weight)
    return state


def _osf_layers(module: Any) -> dict[str, Any]:
    from peft.tuners.osf import OSFLayer

    return {name: layer for name, layer in module.named_modules() if isinstance(layer, OSFLayer)}


def _autocast_disabled(tensor: Tensor) -> Any:
    """Return a context without autocast: in the run's autocast, a product of float32 matrices has 8 bits."""
    return torch.autocast(tensor.device.type, enabled=False)


def _updated_removed_component(layer: Any, low: SvdFactors) -> SvdFactors:
    """Return the new M of a layer with changed weight W: M + low - U' S' V', so that W0 - (new M) + low = W.

    Args:
        layer: The layer, with its M, U', S' and V'.
        low: The factors of W's smallest singular triples, which are trained next.
    """
    terms = [low, trainable_svd_factors(layer), removed_component(layer)]
    left = torch.cat([sign * a * s for sign, (a, s, _) in zip((1, -1, 1), terms, strict=True)], dim=1).float()
    right = torch.cat([b for _, _, b in terms]).float()
    if left.shape[1] > min(left.shape[0], right.shape[1]):  # then the product itself has fewer columns
        product = left @ right
        identity = torch.eye(min(product.shape), device=product.device)
        left, right = (identity, product) if product.shape[0] <= product.shape[1] else (product, identity)
    return left, torch.ones(left.shape[1], device=left.device), right
