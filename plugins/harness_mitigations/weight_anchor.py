"""What EWC and L2-SP share: an anchor, importances, and the ways in which weights are pulled to them.

`gradient`: the pull joins the gradient after the task's was clipped, so that neither takes from the other. `loss`:
before clipping, which is what a penalty in the loss comes to, up to rounding: its gradient does not depend on the
batch, so that adding it once an update equals differentiating it with every micro-batch. `proximal`: after the
optimizer's step, theta <- theta0 + (theta - theta0) / (1 + eta lambda F), with the update's learning rate eta.

A layer with an adapter is anchored by the change of its weight, as a product, never factor by factor.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from harness.errors import HarnessError
from harness.interfaces.mitigation import Mitigation

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from transformers import PreTrainedModel

    from harness_mitigations.adapted_weights import TrainableWeights


CHUNK_SIZE = {"cpu": 2**20}
"""Numbers that are worked on at once on a kind of device: on a CPU as many as its cache holds."""

DEFAULT_CHUNK_SIZE = 2**25
"""And elsewhere, where each step costs a launch. Bounds the memory of what lies between to 8 bytes times this."""

MAX_PROXIMAL_FACTOR = 1e30
"""A proximal step with more than this goes all the way: it keeps infinities out."""

LoraFactors = Sequence[tuple["Tensor", "Tensor"]]
"""Pairs of A, of shape (r, k), and B, of shape (d, r), the scale within B: the change of a weight is the sum of B A."""


def add_penalty_gradient(
    weights: Sequence[Tensor],
    gradients: Sequence[Tensor],
    anchors: Sequence[Tensor],
    importances: Sequence[Tensor] | None,
    strength: float,
) -> Tensor:
    """Add strength * F (theta - theta0) to the gradients, in place; return strength / 2 * sum of F (theta - theta0)^2.

    All are equally long; weight, gradient, anchor theta0 and importance F of one index have one shape. None: F is 1.
    Anchors and importances may lie on another device, or in a shorter format.
    """
    import torch

    values = []
    with torch.no_grad():
        for theta, gradient, start, importance in _iter_chunks(weights, gradients, anchors, importances):
            drift = torch._foreach_sub(theta, start)
            force = torch._foreach_mul(drift, importance) if importance else drift
            torch._foreach_add_(gradient, force, alpha=strength)
            values += _dot_products(drift, force)
        return _penalty_from_dot_products(values, strength)


def penalty_value(
    weights: Sequence[Tensor], anchors: Sequence[Tensor], importances: Sequence[Tensor] | None, strength: float
) -> Tensor:
    """strength / 2 * sum of F (theta - theta0)^2 alone. Arguments as in `add_penalty_gradient`."""
    import torch

    values = []
    with torch.no_grad():
        for theta, _, start, importance in _iter_chunks(weights, weights, anchors, importances):
            drift = torch._foreach_sub(theta, start)
            values += _dot_products(drift, torch._foreach_mul(drift, importance) if importance else drift)
        return _penalty_from_dot_products(values, strength)


def apply_proximal_step(
    weights: Sequence[Tensor], anchors: Sequence[Tensor], importances: Sequence[Tensor] | None, step_size: float
) -> None:
    """Move each weight to theta0 + (theta - theta0) / (1 + step_size * F), in place.

    That is the minimiser of |x - theta|^2 / 2 + step_size / 2 * F (x - theta0)^2 over x, stable at any step size >= 0:
    at 0 theta stays bit for bit, at infinity it is theta0. step_size: learning rate * strength. Arguments as in
    `add_penalty_gradient`.
    """
    import torch

    with torch.no_grad():
        for theta, _, start, importance in _iter_chunks(weights, weights, anchors, importances):
            if not importance:
                part = 1.0 if step_size > MAX_PROXIMAL_FACTOR else step_size / (1 + step_size)
                torch._foreach_lerp_(theta, start, part)
                continue
            share = torch._foreach_mul(importance, step_size)
            torch._foreach_clamp_max_(share, MAX_PROXIMAL_FACTOR)
            torch._foreach_div_(share, torch._foreach_add(share, 1.0))
            torch._foreach_lerp_(theta, start, share)


def low_rank_difference(current: LoraFactors, anchor: LoraFactors) -> Tensor:
    """The sum of B A over `current` less that over `anchor`, as a matrix of shape (d, k), formed by one product."""
    import torch

    left = torch.cat([*(b for _, b in current), *(-b for _, b in anchor)], dim=1)
    right = torch.cat([*(a for a, _ in current), *(a for a, _ in anchor)])
    return left @ right


def add_lora_penalty_gradient(
    factors: LoraFactors,
    gradients: LoraFactors,
    scales: Sequence[float],
    drift: Tensor,
    importance: Tensor | None,
    strength: float,
) -> Tensor:
    """`add_penalty_gradient` in the space of a weight W that moves by s B A alone; return the value.

    With G = strength * F * drift, the gradient by W, adds s B^T G to the gradient of A and s G A^T to that of B.
    factors: the pairs (A, B), B without its scale s. gradients: theirs. drift: of W since the anchor, (d, k), see
    `low_rank_difference`. importance: F, (d, k); None: 1.
    """
    import torch

    with torch.no_grad():
        force = drift if importance is None else drift * importance.to(drift.device, drift.dtype)
        for (a, b), (to_a, to_b), scale in zip(factors, gradients, scales, strict=True):
            to_a.addmm_(b.T, force, alpha=strength * scale)
            to_b.addmm_(force, a.T, alpha=strength * scale)
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
    """The same tensors in groups of a slice's size: whole small ones together, pieces of large ones. The pieces of
    weights and gradients are views; anchors and importances come in the weight's format and on its device."""
    group: tuple[list[Tensor], list[Tensor], list[Tensor], list[Tensor]] = ([], [], [], [])
    size = 0
    for index, weight in enumerate(weights):
        weight = weight.detach()
        four = [
            weight,
            gradients[index].detach(),
            anchors[index],
            *(importances[index : index + 1] if importances else ()),
        ]
        limit = CHUNK_SIZE.get(weight.device.type, DEFAULT_CHUNK_SIZE)
        if weight.numel() > limit and all(tensor.is_contiguous() for tensor in four):
            pieces = list(zip(*(tensor.view(-1).split(limit) for tensor in four), strict=True))
        else:
            pieces = [tuple(four)]
        for piece in pieces:
            if size and size + piece[0].numel() > limit:
                yield group
                group, size = ([], [], [], []), 0
            for number, tensor in enumerate(piece):
                group[number].append(tensor if number < 2 else tensor.to(weight.device, weight.dtype))
            size += piece[0].numel()
    if size:
        yield group


Coupling = Literal["gradient", "loss", "proximal"]
StorageDevice = Literal["device", "cpu"]


class AnchoredWeights(Mitigation):
    """Holds what moves near an anchor, with a force that its importance gives it. Sets no anchor of its own.

    name: of the mitigation. strength: lambda. coupling: see above. place: where anchor and importances lie between
    updates. importance: None for a mitigation that holds all weights alike.
    """

    def __init__(self, name: str, strength: float, coupling: Coupling, place: StorageDevice) -> None:
        self.name, self.strength, self.coupling, self.place = name, strength, coupling, place
        self.penalty_timing = "before_clip" if coupling == "loss" else "after_clip"
        self.importance: dict[str, Tensor] | None = None
        self.anchor: dict[str, Tensor] = {}
        self.lora_anchors: dict[str, dict[str, Tensor]] = {}  # weight -> A and s B, side by side, of its change then

    def check_compatible(self, others: Mapping[str, Mitigation]) -> None:
        """Refuse adapters whose change is not s B A, and the proximal step with one."""
        where = f"mitigations.{self.name}"
        if getattr(others.get("lora"), "dora", False):
            what = "with DoRA the change of a weight is not s B A, whose distance would be held"
            raise HarnessError(where, what, "set mitigations.lora.dora to false")
        if "osf" in others:
            what = "'osf' trains factors of a weight, and how far they move is not how far the weight does"
            raise HarnessError(where, what, "take one of the two out; the strongest directions are held by osf already")
        adapter = next((name for name in others if name in ("lora", "orthogonal_lora")), None)
        if adapter and self.coupling == "proximal":
            self._reject_proximal(f"'{adapter}'")

    def add_weight_penalty(self, model: PreTrainedModel) -> torch.Tensor | None:
        """Pull every weight that this update moves to its anchor; with `proximal` say only how far it is."""
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
        """With `proximal`, move every weight part of the way back to its anchor."""
        if self.coupling != "proximal" or self.strength == 0 or learning_rate == 0 or not self.anchor:
            return

        names, weights, _ = self._anchored_parameters(model)
        anchors, importances = self._anchors_and_importances(names)
        apply_proximal_step(weights, anchors, importances, learning_rate * self.strength)

    def state_dict(self) -> dict[str, Any]:
        """Anchors by name of the weight, changes by name of the weight as A and s B, and any importances."""
        importance = {} if self.importance is None else {"importance": self.importance}
        return {"anchor": self.anchor, "changes": self.lora_anchors, **importance}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what `state_dict` gave."""
        self.anchor = dict(state["anchor"])
        self.lora_anchors = {name: dict(pair) for name, pair in state["changes"].items()}
        self.importance = dict(state["importance"]) if "importance" in state else None

    def _trainable_weights(self, model: PreTrainedModel) -> TrainableWeights:
        from harness_mitigations.adapted_weights import find_trainable_weights

        found = find_trainable_weights(model, f"mitigations.{self.name}")
        if found.lora_layers and self.coupling == "proximal":
            self._reject_proximal("an adapter")
        return found

    def _set_anchor(self, trainable: TrainableWeights) -> None:
        """Remember where everything that moves is now."""
        import torch

        from harness_mitigations.adapted_weights import lora_factors

        self.anchor = {
            name: self._to_storage(_to_bfloat16_if_lossless(weight.detach()))
            for name, weight in trainable.weights.items()
        }
        self.lora_anchors = {}
        for name, layer in trainable.lora_layers.items():
            pairs = lora_factors(layer)
            self.lora_anchors[name] = {
                "a": self._to_storage(torch.cat([a.float() for a, _ in pairs])),
                "b": self._to_storage(torch.cat([b.float() for _, b in pairs], dim=1)),
            }

    def _to_storage(self, tensor: Tensor) -> Tensor:
        """The tensor, never the one given, where it is to lie between updates."""
        import torch

        if self.place == "device" or tensor.device.type == "cpu":
            return tensor.clone()
        copied = torch.empty_like(tensor, device="cpu", pin_memory=tensor.device.type == "cuda")
        return copied.copy_(tensor)

    def _anchored_parameters(self, model: PreTrainedModel) -> tuple[list[str], list[Tensor], list[Tensor]]:
        """Names, weights and gradients of the anchored parameters; with `proximal` of those without a gradient too,
        which the optimizer has let go by then."""
        named = [(n, w) for n, w in model.named_parameters() if n in self.anchor and w.requires_grad]
        if self.coupling == "proximal":
            return [n for n, _ in named], [w.detach() for _, w in named], []
        moving = [(n, w.detach(), w.grad) for n, w in named if w.grad is not None]
        return [n for n, _, _ in moving], [w for _, w, _ in moving], [g for _, _, g in moving]

    def _anchors_and_importances(self, names: list[str]) -> tuple[list[Tensor], list[Tensor] | None]:
        importances = None if self.importance is None else [self.importance[name] for name in names]
        return [self.anchor[name] for name in names], importances

    def _add_lora_penalty_gradients(self, model: PreTrainedModel) -> list[Tensor]:
        from harness.model import frozen_lora
        from harness_mitigations.adapted_weights import lora_factors, trainable_factors

        values = []
        for name, layer in frozen_lora.lora_layers(model).items():
            then = self.lora_anchors.get(f"{name}.weight")
            pairs, scales = trainable_factors(layer)
            if then is None or not pairs:
                continue
            device = pairs[0][0].device
            drift = low_rank_difference(lora_factors(layer), [(then["a"].to(device), then["b"].to(device))])
            importance = None if self.importance is None else self.importance[f"{name}.weight"]
            gradients = [(a.grad, b.grad) for a, b in pairs]
            values.append(add_lora_penalty_gradient(pairs, gradients, scales, drift, importance, self.strength))  # type: ignore[arg-type]
        return values

    def _reject_proximal(self, adapter: str) -> None:
        raise HarnessError(
            f"mitigations.{self.name}.coupling",
            f"a proximal step in the space of a weight leaves the low rank that {adapter} can write",
            "use 'gradient' or 'loss'",
        )


def _to_bfloat16_if_lossless(weight: Tensor) -> Tensor:
    """The weight in bfloat16 where that loses nothing, as with most models that were published in it; else float32."""
    import torch

    short = weight.to(torch.bfloat16)
    return short if torch.equal(short.to(weight.dtype), weight) else weight.float()
