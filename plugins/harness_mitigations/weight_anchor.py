"""What EWC and L2-SP share: an anchor, importances, and the couplings of the penalty.

The penalty is lambda / 2 * sum of F (theta - theta0)^2 with anchor theta0 and importances F. A coupling chooses when it
acts:

| coupling   | when                              | effect                                                          |
|------------|-----------------------------------|-----------------------------------------------------------------|
| `gradient` | after the task gradient's clipping| neither reduces the other                                       |
| `loss`     | before clipping                   | that of a penalty in the loss, up to rounding: its gradient does|
|            |                                   | not depend on the batch, so adding it once a step is the same   |
| `proximal` | after the optimizer's step        | theta <- theta0 + (theta - theta0) / (1 + eta lambda F), with   |
|            |                                   | the step's learning rate eta                                    |

A layer with an adapter is anchored by the change of its weight, as a product, never by its factors.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from harness.errors import HarnessError
from harness.interfaces.mitigation import Mitigation

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from transformers import PreTrainedModel

    from harness_mitigations.adapted_weights import TrainableWeights

COUPLING_OPTION: dict[str, Any] = {
    "enum": ["gradient", "loss", "proximal"],
    "default": "gradient",
    "description": "When the penalty acts. gradient: after the task's gradient is clipped. loss: before it is clipped, "
    "as in the papers; unstable where train.max_grad_norm clips, and then it can forget more than no penalty. "
    "proximal: after the optimizer's step.",
}
PLACE_OPTION: dict[str, Any] = {
    "enum": ["device", "cpu"],
    "default": "device",
    "description": "Where anchor and importances are stored: on the device of the weights, or in main memory, copied "
    "at every step.",
}

CHUNK_SIZE = {"cpu": 2**20}
"""Number of elements processed at once, by device type: on a CPU as many as its cache holds."""

DEFAULT_CHUNK_SIZE = 2**25
"""The same on other devices, where each operation costs a launch. Temporaries take at most 8 bytes times this."""

MAX_PROXIMAL_FACTOR = 1e30
"""A larger factor moves the weight to the anchor exactly; the limit avoids infinities."""

LoraFactors = Sequence[tuple["Tensor", "Tensor"]]
"""Pairs of A, of shape (r, k), and B, of shape (d, r), the scale within B: the change of a weight is the sum of B A."""


def add_penalty_gradient(
    weights: Sequence[Tensor],
    gradients: Sequence[Tensor],
    anchors: Sequence[Tensor],
    importances: Sequence[Tensor] | None,
    strength: float,
) -> Tensor:
    """Add strength * F (theta - theta0) to the gradients, in place.

    All sequences have the same length; the tensors of one index have the same shape. Anchors and importances may be on
    another device or in a narrower dtype.

    Args:
        weights: theta.
        gradients: changed in place.
        anchors: theta0.
        importances: F; None: 1.
        strength: lambda.

    Returns:
        strength / 2 * sum of F (theta - theta0)^2, a float64 scalar.
    """
    import torch

    products = []
    with torch.no_grad():
        for theta, gradient, start, importance in _iter_chunks(weights, gradients, anchors, importances):
            drift = torch._foreach_sub(theta, start)
            force = torch._foreach_mul(drift, importance) if importance else drift
            torch._foreach_add_(gradient, force, alpha=strength)
            products += _dot_products(drift, force)
        return _penalty_from_dot_products(products, strength)


def penalty_value(
    weights: Sequence[Tensor], anchors: Sequence[Tensor], importances: Sequence[Tensor] | None, strength: float
) -> Tensor:
    """Return strength / 2 * sum of F (theta - theta0)^2 alone. Arguments as in `add_penalty_gradient`."""
    import torch

    products = []
    with torch.no_grad():
        for theta, _, start, importance in _iter_chunks(weights, weights, anchors, importances):
            drift = torch._foreach_sub(theta, start)
            products += _dot_products(drift, torch._foreach_mul(drift, importance) if importance else drift)
        return _penalty_from_dot_products(products, strength)


def apply_proximal_step(
    weights: Sequence[Tensor], anchors: Sequence[Tensor], importances: Sequence[Tensor] | None, step_size: float
) -> None:
    """Move each weight to theta0 + (theta - theta0) / (1 + step_size * F), in place.

    That minimizes |x - theta|^2 / 2 + step_size / 2 * F (x - theta0)^2 over x. It is stable at any step size: at 0
    theta is unchanged bit for bit, at infinity it is theta0.

    Args:
        weights: theta, changed in place.
        anchors: theta0, see `add_penalty_gradient`.
        importances: F; None: 1.
        step_size: learning rate * strength, at least 0.
    """
    import torch

    with torch.no_grad():
        for theta, _, start, importance in _iter_chunks(weights, weights, anchors, importances):
            if not importance:
                fraction = 1.0 if step_size > MAX_PROXIMAL_FACTOR else step_size / (1 + step_size)
                torch._foreach_lerp_(theta, start, fraction)
                continue
            fractions = torch._foreach_mul(importance, step_size)
            torch._foreach_clamp_max_(fractions, MAX_PROXIMAL_FACTOR)
            torch._foreach_div_(fractions, torch._foreach_add(fractions, 1.0))
            torch._foreach_lerp_(theta, start, fractions)


def low_rank_difference(current: LoraFactors, anchor: LoraFactors) -> Tensor:
    """Return the sum of B A over `current` minus that over `anchor`, (d, k), computed as one product."""
    import torch

    left = torch.cat([*(b for _, b in current), *(-b for _, b in anchor)], dim=1)  # (d, R)
    right = torch.cat([*(a for a, _ in current), *(a for a, _ in anchor)])  # (R, k)
    return left @ right


def add_lora_penalty_gradient(
    factors: LoraFactors,
    gradients: LoraFactors,
    scales: Sequence[float],
    drift: Tensor,
    importance: Tensor | None,
    strength: float,
) -> Tensor:
    """Add the penalty's gradient to the factors of a weight W that changes by s B A, in place.

    With G = strength * F * drift, the gradient by W, it adds s B^T G to the gradient of A and s G A^T to that of B.

    Args:
        factors: pairs (A, B), B without its scale s.
        gradients: the gradients of A and B, changed in place.
        scales: s of each pair.
        drift: (d, k), change of W since the anchor, see `low_rank_difference`.
        importance: F, (d, k); None: 1.
        strength: lambda.

    Returns:
        strength / 2 * sum of F drift^2, a float64 scalar.
    """
    import torch

    with torch.no_grad():
        force = drift if importance is None else drift * importance.to(drift.device, drift.dtype)  # (d, k)
        for (a, b), (a_gradient, b_gradient), scale in zip(factors, gradients, scales, strict=True):
            a_gradient.addmm_(b.T, force, alpha=strength * scale)
            b_gradient.addmm_(force, a.T, alpha=strength * scale)
        return _penalty_from_dot_products([torch.dot(drift.flatten(), force.flatten())], strength)


def _dot_products(left: Sequence[Tensor], right: Sequence[Tensor]) -> list[Tensor]:
    import torch

    return [torch.dot(a.flatten(), b.flatten()) for a, b in zip(left, right, strict=True)]


def _penalty_from_dot_products(dot_products: Sequence[Tensor], strength: float) -> Tensor:
    import torch

    return strength / 2 * torch.stack(list(dot_products)).double().sum() if dot_products else torch.zeros(())


def _iter_chunks(
    weights: Sequence[Tensor],
    gradients: Sequence[Tensor],
    anchors: Sequence[Tensor],
    importances: Sequence[Tensor] | None,
) -> Iterator[tuple[list[Tensor], list[Tensor], list[Tensor], list[Tensor]]]:
    """Yield the tensors in chunks of at most the chunk size: small ones together, large ones in pieces.

    Pieces of weights and gradients are views; anchors and importances are converted to the weight's dtype and device.
    """
    chunk: tuple[list[Tensor], list[Tensor], list[Tensor], list[Tensor]] = ([], [], [], [])
    size = 0
    for index, weight in enumerate(weights):
        weight = weight.detach()
        tensors = [
            weight,
            gradients[index].detach(),
            anchors[index],
            *(importances[index : index + 1] if importances else ()),
        ]
        limit = CHUNK_SIZE.get(weight.device.type, DEFAULT_CHUNK_SIZE)
        if weight.numel() > limit and all(tensor.is_contiguous() for tensor in tensors):
            pieces = list(zip(*(tensor.view(-1).split(limit) for tensor in tensors), strict=True))
        else:
            pieces = [tuple(tensors)]
        for piece in pieces:
            if size and size + piece[0].numel() > limit:
                yield chunk
                chunk, size = ([], [], [], []), 0
            for index_in_piece, tensor in enumerate(piece):
                is_view = index_in_piece < 2  # a weight or a gradient
                chunk[index_in_piece].append(tensor if is_view else tensor.to(weight.device, weight.dtype))
            size += piece[0].numel()
    if size:
        yield chunk


Coupling = Literal["gradient", "loss", "proximal"]
StorageDevice = Literal["device", "cpu"]


class AnchoredWeights(Mitigation):
    """Regularize the trainable weights towards an anchor. Subclasses set the anchor.

    Args:
        name: the mitigation's name.
        strength: lambda.
        coupling: see the module.
        place: where anchor and importances are stored between steps.

    Attributes:
        importance: F by name of the weight; None: 1 for all weights.
        anchor: theta0 by name of the weight.
        lora_anchors: name of an adapted weight -> `a`, (R, k), and `b`, (d, R): its change at the anchor is b a.
    """

    def __init__(self, name: str, strength: float, coupling: Coupling, place: StorageDevice) -> None:
        self.name, self.strength, self.coupling, self.place = name, strength, coupling, place
        self.penalty_timing = "before_clip" if coupling == "loss" else "after_clip"
        self.importance: dict[str, Tensor] | None = None
        self.anchor: dict[str, Tensor] = {}
        self.lora_anchors: dict[str, dict[str, Tensor]] = {}

    def check_compatible(self, others: Mapping[str, Mitigation]) -> None:
        """Reject adapters whose change is not s B A, and the coupling `proximal` with an adapter."""
        where = f"mitigations.{self.name}"
        if getattr(others.get("lora"), "dora", False):
            what = "with DoRA the change of a weight is not s B A, so its distance from the anchor is not defined"
            raise HarnessError(where, what, "set mitigations.lora.dora to false")
        if "osf" in others:
            what = "'osf' trains factors of a weight, whose distance is not that of the weight"
            hint = f"remove osf or {self.name}; osf already freezes the strongest directions"
            raise HarnessError(where, what, hint)
        adapter = next((name for name in others if name in ("lora", "orthogonal_lora", "merged_lora")), None)
        if adapter and self.coupling == "proximal":
            self._reject_proximal(f"'{adapter}'")

    def warn_of_clipping(self) -> None:
        """Warn that clipping takes away the penalty's strength, if the coupling is `loss`."""
        if self.coupling == "loss" and self.strength != 0:
            warnings.warn(
                f"mitigations.{self.name}.coupling is 'loss': train.max_grad_norm clips the penalty together with the "
                "task's gradient, which is unstable and can forget more than no penalty; use 'gradient', or a "
                "max_grad_norm that never clips",
                stacklevel=2,
            )

    def held_bytes(self, model: PreTrainedModel, *, itemsize: int) -> int:
        """Return the bytes of the anchor. It is bfloat16 for a model that was published in bfloat16."""
        import torch

        if self.place == "cpu":
            return 0
        trained = sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
        is_adapter = hasattr(model, "peft_config")
        return trained * (2 if model.config.dtype == torch.bfloat16 and not is_adapter else 4)

    def add_weight_penalty(self, model: PreTrainedModel) -> torch.Tensor | None:
        """Add the penalty's gradient to that of every trained weight; with `proximal` only return the penalty."""
        if self.strength == 0 or not (self.anchor or self.lora_anchors):
            return None

        names, weights, gradients = self._anchored_parameters(model)
        values = []
        if names:
            anchors, importances = self._anchors_and_importances(names)
            if self.coupling == "proximal":
                values.append(penalty_value(weights, anchors, importances, self.strength))
            else:
                values.append(add_penalty_gradient(weights, gradients, anchors, importances, self.strength))
        if self.lora_anchors:
            values += self._add_lora_penalty_gradients(model)
        return sum(values[1:], values[0]) if values else None

    def on_step_end(self, model: PreTrainedModel, learning_rate: float) -> None:
        """With `proximal`, move every weight towards its anchor."""
        if self.coupling != "proximal" or self.strength == 0 or learning_rate == 0 or not self.anchor:
            return

        names, weights, _ = self._anchored_parameters(model)
        anchors, importances = self._anchors_and_importances(names)
        apply_proximal_step(weights, anchors, importances, learning_rate * self.strength)

    def state_dict(self) -> dict[str, Any]:
        """Return anchors and importances by name of the weight, and changes of adapted weights as A and s B."""
        importance = {} if self.importance is None else {"importance": self.importance}
        return {"anchor": self.anchor, "changes": self.lora_anchors, **importance}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the state."""
        self.anchor = dict(state["anchor"])
        self.lora_anchors = {name: dict(factors) for name, factors in state["changes"].items()}
        self.importance = dict(state["importance"]) if "importance" in state else None

    def _trainable_weights(self, model: PreTrainedModel) -> TrainableWeights:
        from harness_mitigations.adapted_weights import find_trainable_weights

        trainable = find_trainable_weights(model, f"mitigations.{self.name}")
        if trainable.lora_layers and self.coupling == "proximal":
            self._reject_proximal("an adapter")
        return trainable

    def _set_anchor(self, trainable: TrainableWeights) -> None:
        """Set the anchor to the current weights."""
        import torch

        from harness_mitigations.adapted_weights import lora_factors

        self.anchor = {
            name: self._to_storage(_to_bfloat16_if_lossless(weight.detach()))
            for name, weight in trainable.weights.items()
        }
        self.lora_anchors = {}
        for name, layer in trainable.lora_layers.items():
            factors = lora_factors(layer)
            self.lora_anchors[name] = {
                "a": self._to_storage(torch.cat([a.float() for a, _ in factors])),
                "b": self._to_storage(torch.cat([b.float() for _, b in factors], dim=1)),
            }

    def _to_storage(self, tensor: Tensor) -> Tensor:
        """Return a copy of the tensor on the storage device."""
        import torch

        if self.place == "device" or tensor.device.type == "cpu":
            return tensor.clone()
        storage = torch.empty_like(tensor, device="cpu", pin_memory=tensor.device.type == "cuda")
        return storage.copy_(tensor)

    def _anchored_parameters(self, model: PreTrainedModel) -> tuple[list[str], list[Tensor], list[Tensor]]:
        """Return names, weights and gradients of the anchored parameters.

        With `proximal` those without a gradient are included, since the optimizer has freed gradients by then, and no
        gradients are returned.
        """
        anchored = [(n, w) for n, w in model.named_parameters() if n in self.anchor and w.requires_grad]
        if self.coupling == "proximal":
            return [n for n, _ in anchored], [w.detach() for _, w in anchored], []
        with_gradient = [(n, w.detach(), w.grad) for n, w in anchored if w.grad is not None]
        return [n for n, _, _ in with_gradient], [w for _, w, _ in with_gradient], [g for _, _, g in with_gradient]

    def _anchors_and_importances(self, names: list[str]) -> tuple[list[Tensor], list[Tensor] | None]:
        importances = None if self.importance is None else [self.importance[name] for name in names]
        return [self.anchor[name] for name in names], importances

    def _add_lora_penalty_gradients(self, model: PreTrainedModel) -> list[Tensor]:
        from harness.model import frozen_lora
        from harness_mitigations.adapted_weights import lora_factors, trainable_factors

        values = []
        for name, layer in frozen_lora.lora_layers(model).items():
            anchor = self.lora_anchors.get(f"{name}.weight")
            factors, scales = trainable_factors(layer)
            if anchor is None or not factors:
                continue
            device = factors[0][0].device
            drift = low_rank_difference(lora_factors(layer), [(anchor["a"].to(device), anchor["b"].to(device))])
            importance = None if self.importance is None else self.importance[f"{name}.weight"]
            gradients = [(a.grad, b.grad) for a, b in factors]
            values.append(add_lora_penalty_gradient(factors, gradients, scales, drift, importance, self.strength))  # type: ignore[arg-type]
        return values

    def _reject_proximal(self, adapter: str) -> None:
        raise HarnessError(
            f"mitigations.{self.name}.coupling",
            f"a proximal step on a weight gives a change that {adapter} of low rank cannot represent",
            "set it to 'gradient' or 'loss'",
        )


def _to_bfloat16_if_lossless(weight: Tensor) -> Tensor:
    """Return the weight in bfloat16 if that is exact, as with models published in bfloat16; else in float32."""
    import torch

    rounded = weight.to(torch.bfloat16)
    return rounded if torch.equal(rounded.to(weight.dtype), weight) else weight.float()
