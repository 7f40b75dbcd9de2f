"""WiSE-FT: after a stage the weights are interpolated with those it began with (Wortsman et al., arXiv:2109.01903).

theta = (1 - alpha) theta_start + alpha theta_end. With an adapter it is the change of the weights that is interpolated,
never its factors: s B A becomes (1 - alpha) s B0 A0 + alpha s B A. The second term is the adapter with B scaled; the
first is zero in the first stage, where B0 is, and in later ones is kept beside the adapter, frozen
(`harness.model.frozen_lora.add_frozen_lora`), at the cost of one more adapter's rank a stage.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from harness.errors import HarnessError
from harness.interfaces.mitigation import Mitigation
from harness.types import Stage, TokenizedExample

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

NamedWeights = Mapping[str, "Tensor"]


def interpolate_weights(start: Tensor, end: Tensor, alpha: float) -> Tensor:
    """(1 - alpha) start + alpha end. alpha 0 and 1 give start and end bit for bit."""
    return start if alpha == 0 else end if alpha == 1 else start.lerp(end, alpha)


class WiseFt(Mitigation):
    """Give back some of what a stage changed. alpha: of its own result, in [0, 1]. alphas: a sweep, only measured."""

    priority: ClassVar[int] = 20
    """After `ema`: what is interpolated is the stage's result."""

    def __init__(self, alpha: float, alphas: Sequence[float]) -> None:
        self.alpha, self.alphas = alpha, tuple(alphas)
        self.start: dict[str, Tensor] = {}
        self.end: dict[str, Tensor] = {}
        self.frozen_lora: dict[str, tuple[Tensor, Tensor]] = {}

    def check_compatible(self, others: Mapping[str, Mitigation]) -> None:
        """Refuse adapters whose change of the weights is not linear in something that could be scaled."""
        for name in ("oft", "osf"):
            if name in others:
                what = f"the change that '{name}' makes cannot be scaled by a number within its own form"
                raise HarnessError("mitigations.wise_ft", what, "use lora, or train all weights")
        if getattr(others.get("lora"), "dora", False):
            what = "DoRA divides by the length of the changed weights, so scaling its change interpolates nothing"
            raise HarnessError("mitigations.wise_ft", what, "set mitigations.lora.dora to false")

    def on_stage_start(
        self, stage: Stage, model: PreTrainedModel, rows: Mapping[str, Sequence[TokenizedExample]]
    ) -> None:
        """Remember where the stage begins, on the CPU."""
        self.start, self.end, self.frozen_lora = _copy_trainable_weights(model), {}, {}

    def on_stage_end(self, stage: Stage, model: PreTrainedModel, rows: Sequence[TokenizedExample]) -> None:
        """Go back to (1 - alpha) of where the stage began."""
        from harness.model import frozen_lora

        self.end, self.frozen_lora = (
            _copy_trainable_weights(model),
            {name: (a.cpu(), b.cpu()) for name, (a, b) in frozen_lora.frozen_lora(model).items()},
        )
        self._apply_alpha(model, self.alpha)

    def variants(self, model: PreTrainedModel) -> Iterator[str]:
        """`alpha=<number>` for each of `alphas`."""
        if not self.end:
            return
        from harness.model import frozen_lora

        weights, kept = _copy_trainable_weights(model), frozen_lora.frozen_lora(model)
        try:
            for alpha in self.alphas:
                self._apply_alpha(model, alpha)
                yield f"alpha={alpha:g}"
        finally:
            _overwrite_weights(model, weights)
            if kept or frozen_lora.frozen_lora(model):
                frozen_lora.add_frozen_lora(model, kept, replace=True)

    def state_dict(self) -> dict[str, Any]:
        """The weights that the stage began with, by name; of a finished stage that is swept, its own beside them."""
        swept = {"end": self.end, "kept": self.frozen_lora} if self.alphas and self.end else {}
        return {"start": self.start, **swept}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what `state_dict` gave."""
        self.start = dict(state["start"])
        self.end, self.frozen_lora = (
            dict(state.get("end", {})),
            {name: tuple(one) for name, one in state.get("kept", {}).items()},
        )

    def _apply_alpha(self, model: PreTrainedModel, alpha: float) -> None:
        from harness.model import frozen_lora, save

        if not save.is_peft_model(model):
            _overwrite_weights(
                model, {name: interpolate_weights(self.start[name], end, alpha) for name, end in self.end.items()}
            )
            return
        between = 0 < alpha < 1
        ends = self.start if alpha == 0 else self.end
        _overwrite_weights(model, {n: alpha * w if between and ".lora_B." in n else w for n, w in ends.items()})
        rest = {}
        for name, layer in frozen_lora.lora_layers(model).items() if between else ():
            a, b = (self.start[f"{name}.lora_{factor}.default.weight"] for factor in "AB")
            rest[name] = (a, (1 - alpha) * layer.scaling["default"] * b)
        if self.frozen_lora or frozen_lora.frozen_lora(model):
            frozen_lora.add_frozen_lora(model, self.frozen_lora, replace=True)
        if any(bool(b.any()) for _, b in rest.values()):
            frozen_lora.add_frozen_lora(model, rest)


def _copy_trainable_weights(model: PreTrainedModel) -> dict[str, Tensor]:
    """The weights that can move, on the CPU, by name."""
    import torch

    return {
        name: weight.detach().to("cpu", torch.float32, copy=True)
        for name, weight in model.named_parameters()
        if weight.requires_grad
    }


def _overwrite_weights(model: PreTrainedModel, weights: NamedWeights) -> None:
    import torch

    there = dict(model.named_parameters())
    with torch.no_grad():
        for name, weight in weights.items():
            there[name].copy_(weight)
