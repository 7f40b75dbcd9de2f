"""Weights that are trained within some directions of their decomposition alone: peft's OSF layers (arXiv:2504.07097).

W = U S V^T is cut in two: its largest singular triples stay, the others, U', S' and V', are trained. A layer computes
with W0 - M + U' S' V', where W0 is the base's own weight, which never moves, and W0 - M what is frozen. peft makes M
the other triples of W0. Here a layer can be decomposed again as it has come to be, for a later stage: M then also takes
out what no longer holds of W0, and with the adapter off the model is still the base model, bit for bit.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

TRAINABLE_ADAPTER = "default"
"""peft's name of the adapter that trains."""

REMOVED_COMPONENT_ATTRIBUTES = ("_osf_U_low_init", "_osf_S_low_init", "_osf_V_low_init")
"""Where peft keeps M, as its three factors."""

SvdFactors = tuple[Tensor, Tensor, Tensor]
"""Matrices of shapes (d, r), (r,) and (r, k) that stand for A diag(s) B."""


def subspace_layers(model: Any) -> dict[str, Any]:
    """The layers that are trained within directions of their weight, by their name in the PEFT model; none without."""
    return _osf_layers(model) if hasattr(model, "peft_config") else {}  # peft takes seconds to import


def trainable_svd_factors(layer: Any) -> SvdFactors:
    """U' of shape (d, r), S' of shape (r,) and V' of shape (r, k) that are trained: the parameters themselves."""
    trained = layer.osf_svd_params[TRAINABLE_ADAPTER]
    return trained["U_low"], trained["S_low"], trained["V_low"]


def frozen_singular_vectors(layer: Any) -> tuple[Tensor | None, Tensor | None]:
    """U of shape (d, R) and V of shape (R, k) of the triples that stay, each with orthonormal vectors.

    None: the side on which those that M was made of are all that is orthogonal to them; see `removed_component`.
    """
    return dict(layer._osf_U_high.items()).get(TRAINABLE_ADAPTER), dict(layer._osf_V_high.items()).get(
        TRAINABLE_ADAPTER
    )


def removed_component(layer: Any) -> SvdFactors:
    """M, what is taken out of the base's weight."""
    made = tuple(getattr(layer, name)[TRAINABLE_ADAPTER] for name in REMOVED_COMPONENT_ATTRIBUTES)
    return made[0], made[1], made[2]


def is_modified(layer: Any) -> bool:
    """Whether the layer's weight is no longer what was decomposed. After a second decomposition: True."""
    pairs = zip(trainable_svd_factors(layer), removed_component(layer), strict=True)
    return not all(now.shape == then.shape and torch.equal(now, then) for now, then in pairs)


def effective_weight(layer: Any) -> Tensor:
    """The weight that the layer computes with now, of shape (d, k), in float32."""
    own = layer.get_base_layer().weight
    with torch.no_grad(), _autocast_disabled(own):
        return own.float() + layer.get_delta_weight(TRAINABLE_ADAPTER).float()


def decompose_layer(layer: Any) -> None:
    """Cut the layer's weight as it is now anew, in place, at the rank that it has; it computes the same afterwards.

    In float32 whatever the base's format: directions that are rounded to 16 bits are not orthonormal any more, and what
    is projected with them again and again drifts away. The trained parameters stay the same objects. M has at most
    min(d, k) columns, whatever the number of stages.
    """
    rank = layer.effective_rank[TRAINABLE_ADAPTER]
    whole = effective_weight(layer)
    with torch.no_grad(), _autocast_disabled(whole):
        u, s, v = torch.linalg.svd(whole, full_matrices=False)
        # Laid out as a file gives them back: the last bit of a product depends on the strides of its factors.
        low = (u[:, rank:].contiguous(), s[rank:].contiguous(), v[rank:].contiguous())
        taken = _updated_removed_component(layer, low) if is_modified(layer) else low
        # Which directions are free, M no longer says: those that are not are kept on both sides.
        kept = {"_osf_U_high": u[:, :rank], "_osf_V_high": v[:rank]}
        for name, tensor in {**dict(zip(REMOVED_COMPONENT_ATTRIBUTES, taken, strict=True)), **kept}.items():
            getattr(layer, name)[TRAINABLE_ADAPTER] = tensor.clone(memory_format=torch.contiguous_format)
        for parameter, part in zip(trainable_svd_factors(layer), low, strict=True):
            parameter.data = part


def merged_state_dict(model: Any) -> dict[str, Tensor]:
    """The weights of the model without its adapter that computes the same, by the base's own names, in float32.

    In 16 bits a change of less than half of their last place would be lost. Tied weights stay one tensor.
    """
    inner = model.get_base_model()
    layers = {f"{name}.weight": layer for name, layer in _osf_layers(inner).items()}
    state: dict[str, Tensor] = {}
    known: dict[int, Tensor] = {}
    for name, tensor in inner.state_dict().items():
        plain = name.replace(".base_layer.", ".")
        if ".osf_svd_params." in name:
            continue
        if plain in layers:
            state[plain] = effective_weight(layers[plain])
            continue
        made = tensor.float() if tensor.is_floating_point() else tensor
        state[plain] = known.setdefault(tensor.data_ptr(), made)
    return state


def _osf_layers(module: Any) -> dict[str, Any]:
    from peft.tuners.osf import OSFLayer

    return {name: part for name, part in module.named_modules() if isinstance(part, OSFLayer)}


def _autocast_disabled(tensor: Tensor) -> Any:
    """Stages begin within the run's autocast, in which a product of float32 matrices has 8 bits."""
    return torch.autocast(tensor.device.type, enabled=False)


def _updated_removed_component(layer: Any, low: SvdFactors) -> SvdFactors:
    """M of a layer whose weight W has moved: M before, less U' S' V', more the low triples of W; W0 - M + low is W."""
    terms = [low, trainable_svd_factors(layer), removed_component(layer)]
    left = torch.cat([sign * a * s for sign, (a, s, _) in zip((1, -1, 1), terms, strict=True)], dim=1).float()
    right = torch.cat([b for _, _, b in terms]).float()
    if left.shape[1] > min(left.shape[0], right.shape[1]):  # the product itself has no more columns than that
        product = left @ right
        one = torch.eye(min(product.shape), device=product.device)
        left, right = (one, product) if product.shape[0] <= product.shape[1] else (product, one)
    return left, torch.ones(left.shape[1], device=left.device), right
