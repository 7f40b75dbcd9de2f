"""What EWC and L2-SP share: an anchor, importances, and the ways in which weights are pulled to them.

`gradient`: the pull joins the gradient after the task's was clipped, so that neither takes from the other. `loss`:
before clipping, which is what a penalty in the loss comes to, up to rounding: its gradient does not depend on the
batch, so that adding it once an update equals differentiating it with every micro-batch. `proximal`: after the
optimizer's step, theta <- theta0 + (theta - theta0) / (1 + eta lambda F), with the update's learning rate eta.

A layer with an adapter is anchored by the change of its weight, as a product, never factor by factor.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from harness.contracts import Mitigation
from harness.errors import HarnessError

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from transformers import PreTrainedModel

    from harness_mitigations.moving import Moving

Coupling = Literal["gradient", "loss", "proximal"]
Place = Literal["device", "cpu"]


class Anchored(Mitigation):
    """Holds what moves near an anchor, with a force that its importance gives it. Sets no anchor of its own.

    name: of the mitigation. strength: lambda. coupling: see above. place: where anchor and importances lie between
    updates. importance: None for a mitigation that holds all weights alike.
    """

    def __init__(self, name: str, strength: float, coupling: Coupling, place: Place) -> None:
        self.name, self.strength, self.coupling, self.place = name, strength, coupling, place
        self.pull_at = "before_clip" if coupling == "loss" else "after_clip"
        self.importance: dict[str, Tensor] | None = None
        self.anchor: dict[str, Tensor] = {}
        self.changes: dict[str, dict[str, Tensor]] = {}  # weight -> A and s B, side by side, of its change then

    def check(self, others: Mapping[str, Mitigation]) -> None:
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
            self._refuse_proximal(f"'{adapter}'")

    def weight_pull(self, model: PreTrainedModel) -> torch.Tensor | None:
        """Pull every weight that this update moves to its anchor; with `proximal` say only how far it is."""
        if self.strength == 0 or not (self.anchor or self.changes):
            return None
        from harness_mitigations import pull

        names, weights, gradients = self._held(model)
        values = []
        if names:
            anchors, importances = self._remembered(names)
            if self.coupling == "proximal":
                values.append(pull.value(weights, anchors, importances, self.strength))
            else:
                values.append(pull.pull(weights, gradients, anchors, importances, self.strength))
        if self.changes:
            values += self._pull_changes(model)
        return sum(values[1:], values[0]) if values else None

    def after_step(self, model: PreTrainedModel, learning_rate: float) -> None:
        """With `proximal`, move every weight part of the way back to its anchor."""
        if self.coupling != "proximal" or self.strength == 0 or learning_rate == 0 or not self.anchor:
            return
        from harness_mitigations import pull

        names, weights, _ = self._held(model)
        anchors, importances = self._remembered(names)
        pull.proximal(weights, anchors, importances, learning_rate * self.strength)

    def state_dict(self) -> dict[str, Any]:
        """Anchors by name of the weight, changes by name of the weight as A and s B, and any importances."""
        importance = {} if self.importance is None else {"importance": self.importance}
        return {"anchor": self.anchor, "changes": self.changes, **importance}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what `state_dict` gave."""
        self.anchor = dict(state["anchor"])
        self.changes = {name: dict(pair) for name, pair in state["changes"].items()}
        self.importance = dict(state["importance"]) if "importance" in state else None

    def _moving(self, model: PreTrainedModel) -> Moving:
        from harness_mitigations.moving import moving

        found = moving(model, f"mitigations.{self.name}")
        if found.layers and self.coupling == "proximal":
            self._refuse_proximal("an adapter")
        return found

    def _anchor(self, moves: Moving) -> None:
        """Remember where everything that moves is now."""
        import torch

        from harness_mitigations.moving import change

        self.anchor = {name: self._put(_shortest(weight.detach())) for name, weight in moves.weights.items()}
        self.changes = {}
        for name, layer in moves.layers.items():
            pairs = change(layer)
            self.changes[name] = {
                "a": self._put(torch.cat([a.float() for a, _ in pairs])),
                "b": self._put(torch.cat([b.float() for _, b in pairs], dim=1)),
            }

    def _put(self, tensor: Tensor) -> Tensor:
        """The tensor, never the one given, where it is to lie between updates."""
        import torch

        if self.place == "device" or tensor.device.type == "cpu":
            return tensor.clone()
        copied = torch.empty_like(tensor, device="cpu", pin_memory=tensor.device.type == "cuda")
        return copied.copy_(tensor)

    def _held(self, model: PreTrainedModel) -> tuple[list[str], list[Tensor], list[Tensor]]:
        """Names, weights and gradients of the anchored parameters; with `proximal` of those without a gradient too,
        which the optimizer has let go by then."""
        named = [(n, w) for n, w in model.named_parameters() if n in self.anchor and w.requires_grad]
        if self.coupling == "proximal":
            return [n for n, _ in named], [w.detach() for _, w in named], []
        moving = [(n, w.detach(), w.grad) for n, w in named if w.grad is not None]
        return [n for n, _, _ in moving], [w for _, w, _ in moving], [g for _, _, g in moving]

    def _remembered(self, names: list[str]) -> tuple[list[Tensor], list[Tensor] | None]:
        importances = None if self.importance is None else [self.importance[name] for name in names]
        return [self.anchor[name] for name in names], importances

    def _pull_changes(self, model: PreTrainedModel) -> list[Tensor]:
        from harness import model as models
        from harness_mitigations import pull
        from harness_mitigations.moving import change, trained

        values = []
        for name, layer in models.adapted_layers(model).items():
            then = self.changes.get(f"{name}.weight")
            pairs, scales = trained(layer)
            if then is None or not pairs:
                continue
            device = pairs[0][0].device
            drift = pull.difference(change(layer), [(then["a"].to(device), then["b"].to(device))])
            importance = None if self.importance is None else self.importance[f"{name}.weight"]
            gradients = [(a.grad, b.grad) for a, b in pairs]
            values.append(pull.pull_factors(pairs, gradients, scales, drift, importance, self.strength))  # type: ignore[arg-type]
        return values

    def _refuse_proximal(self, adapter: str) -> None:
        raise HarnessError(
            f"mitigations.{self.name}.coupling",
            f"a proximal step in the space of a weight leaves the low rank that {adapter} can write",
            "use 'gradient' or 'loss'",
        )


def _shortest(weight: Tensor) -> Tensor:
    """The weight in bfloat16 where that loses nothing, as with most models that were published in it; else float32."""
    import torch

    short = weight.to(torch.bfloat16)
    return short if torch.equal(short.to(weight.dtype), weight) else weight.float()
