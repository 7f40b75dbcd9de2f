"""Mitigation `wise_ft`: after a stage the weights are interpolated with those that it began with (WiSE-FT).

theta = (1 - alpha) theta_start + alpha theta_end (Wortsman et al., arXiv:2109.01903). With an adapter the change of the
weights is interpolated, never its factors: s B A becomes (1 - alpha) s B0 A0 + alpha s B A. The second term is the
adapter with B scaled. The first term is zero in the first stage, where B0 = 0. In later stages it is stored as a frozen
adapter (`harness.model.frozen_lora.add_frozen_lora`), which adds one adapter's rank a stage.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from harness import Component
from harness.errors import HarnessError
from harness.interfaces.mitigation import Mitigation
from harness.types import Stage, TokenizedExample
from harness_mitigations import adapter_common

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

COMPONENTS: dict[str, Component] = {
    "wise_ft": Component(
        summary="Interpolates the weights with those that a stage began with (WiSE-FT, arXiv:2109.01903).",
        factory="harness_mitigations.wise_ft:WiseFt",
        options={
            "alpha": {
                "type": "number",
                "minimum": 0,
                "maximum": 1,
                "default": 0.5,
                "description": "Weight of the stage's own result; 1: all of what it learned is kept, 0: nothing.",
            },
            "alphas": {
                "type": "array",
                "items": {"type": "number", "minimum": 0, "maximum": 1},
                "uniqueItems": True,
                "default": [],
                "description": "A sweep: the suites are also evaluated at each of these, e.g. [0, 0.25, 0.5, 0.75, 1].",
            },
        },
    ),
}


def interpolate_weights(start: Tensor, end: Tensor, alpha: float) -> Tensor:
    """Return (1 - alpha) start + alpha end. alpha 0 and 1 give start and end bit for bit."""
    return start if alpha == 0 else end if alpha == 1 else start.lerp(end, alpha)


class WiseFt(Mitigation):
    """Revert a part of what a stage changed.

    Args:
        alpha: weight of the stage's own result, in [0, 1].
        alphas: a sweep of other values, which are only evaluated.
    """

    priority: ClassVar[int] = 20
    """After `ema`: the stage's averaged result is interpolated."""

    def __init__(self, alpha: float, alphas: Sequence[float]) -> None:
        self.alpha, self.alphas = alpha, tuple(alphas)
        self.start: dict[str, Tensor] = {}
        self.end: dict[str, Tensor] = {}
        self.frozen_lora: dict[str, tuple[Tensor, Tensor]] = {}

    def check_compatible(self, others: Mapping[str, Mitigation]) -> None:
        """Reject adapters whose change of the weights cannot be scaled within their own form."""
        adapter_common.refuse_merged_lora("wise_ft", others)
        for name in ("oft", "osf"):
            if name in others:
                what = f"a scaled change of '{name}' is not a change that '{name}' can represent"
                raise HarnessError("mitigations.wise_ft", what, f"remove wise_ft, or replace '{name}' by 'lora'")
        if getattr(others.get("lora"), "dora", False):
            what = "DoRA divides by the norm of the changed weights, so scaling its factors does not interpolate"
            raise HarnessError("mitigations.wise_ft", what, "set mitigations.lora.dora to false")

    def on_stage_start(
        self, stage: Stage, model: PreTrainedModel, rows: Mapping[str, Sequence[TokenizedExample]], *, seed: int
    ) -> None:
        """Copy the weights that the stage begins with, on the CPU.

        Raises:
            HarnessError: a layer with an adapter is not a linear one.
        """
        from harness_mitigations.linear_layers import require_linear_adapters

        require_linear_adapters("mitigations.wise_ft", model)
        if hasattr(model, "peft_config"):
            adapter_common.refuse_added_rows("mitigations.wise_ft", model)
        self.start, self.end, self.frozen_lora = _copy_trainable_weights(model), {}, {}

    def on_stage_end(self, stage: Stage, model: PreTrainedModel, rows: Sequence[TokenizedExample]) -> None:
        """Interpolate the weights with those that the stage began with."""
        from harness.model import frozen_lora

        self.end = _copy_trainable_weights(model)
        self.frozen_lora = {name: (a.cpu(), b.cpu()) for name, (a, b) in frozen_lora.frozen_lora(model).items()}
        self._apply_alpha(model, self.alpha)

    def variants(self, model: PreTrainedModel) -> Iterator[str]:
        """Yield `alpha=<number>` for each of `alphas`."""
        if not self.end:
            return
        from harness.model import frozen_lora

        weights, frozen_factors = _copy_trainable_weights(model), frozen_lora.frozen_lora(model)
        try:
            for alpha in self.alphas:
                self._apply_alpha(model, alpha)
                yield f"alpha={alpha:g}"
        finally:
            _overwrite_weights(model, weights)
            if frozen_factors or frozen_lora.frozen_lora(model):
                frozen_lora.add_frozen_lora(model, frozen_factors, replace=True)

    def state_dict(self) -> dict[str, Any]:
        """Return the weights that the stage began with, by name; for a sweep also those that it ended with."""
        result = {"end": self.end, "kept": self.frozen_lora} if self.alphas and self.end else {}
        return {"start": self.start, **result}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the state."""
        self.start, self.end = dict(state["start"]), dict(state.get("end", {}))
        self.frozen_lora = {name: tuple(factors) for name, factors in state.get("kept", {}).items()}

    def _apply_alpha(self, model: PreTrainedModel, alpha: float) -> None:
        from harness.model import frozen_lora, save

        if not save.is_peft_model(model):
            _overwrite_weights(
                model, {name: interpolate_weights(self.start[name], end, alpha) for name, end in self.end.items()}
            )
            return
        interior = 0 < alpha < 1
        adapter = self.start if alpha == 0 else self.end
        _overwrite_weights(model, {n: alpha * w if interior and ".lora_B." in n else w for n, w in adapter.items()})
        start_term = {}  # (1 - alpha) s B0 A0
        for name, layer in frozen_lora.lora_layers(model).items() if interior else ():
            a, b = (self.start[f"{name}.lora_{factor}.default.weight"] for factor in "AB")
            start_term[name] = (a, (1 - alpha) * layer.scaling["default"] * b)
        if self.frozen_lora or frozen_lora.frozen_lora(model):
            frozen_lora.add_frozen_lora(model, self.frozen_lora, replace=True)
        if any(bool(b.any()) for _, b in start_term.values()):
            frozen_lora.add_frozen_lora(model, start_term)


def _copy_trainable_weights(model: PreTrainedModel) -> dict[str, Tensor]:
    """Return copies of the trainable weights by name, float32, on the CPU."""
    import torch

    return {
        name: weight.detach().to("cpu", torch.float32, copy=True)
        for name, weight in model.named_parameters()
        if weight.requires_grad
    }


def _overwrite_weights(model: PreTrainedModel, weights: Mapping[str, Tensor]) -> None:
    import torch

    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for name, weight in weights.items():
            parameters[name].copy_(weight)
