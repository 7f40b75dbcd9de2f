"""Mitigation `ema`: each stage ends with an exponential moving average of its weights.

With theta_t the weights after step t of n, the average is sum of d^(n-t) theta_t / sum of d^(n-t). It is bias-corrected
like Adam's moments: the weights before the first step are not part of it, and d need not fit the number of steps.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from harness import Component
from harness.interfaces.mitigation import Mitigation
from harness.types import Stage, TokenizedExample

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

COMPONENTS: dict[str, Component] = {
    "ema": Component(
        summary="Ends each stage with an exponential moving average of its weights.",
        factory="harness_mitigations.ema:Ema",
        options={
            "decay": {
                "type": "number",
                "minimum": 0,
                "exclusiveMaximum": 1,
                "default": 0.99,
                "description": "Weight of the previous average at each step; the average covers about "
                "1 / (1 - decay) steps.",
            },
        },
    ),
}


def update_average(average: Sequence[Tensor], weights: Sequence[Tensor], decay: float, steps: int) -> None:
    """Add the weights after one more step to the average, in place.

    Args:
        average: float32 tensors, of the shapes of `weights`.
        weights: the weights after the step.
        decay: d, in [0, 1).
        steps: number of steps in the average, this one included.
    """
    import torch

    fraction = (1 - decay) / (1 - decay**steps) if decay > 0 else 1.0
    torch._foreach_lerp_(list(average), [weight.detach().float() for weight in weights], fraction)


class Ema(Mitigation):
    """Average the trainable weights over each stage and continue with the average.

    Args:
        decay: d, in [0, 1); 0 changes nothing.
    """

    priority: ClassVar[int] = 10

    def __init__(self, decay: float) -> None:
        self.decay = decay
        self.average: dict[str, Tensor] = {}
        self.steps = 0

    def held_bytes(self, model: PreTrainedModel, *, itemsize: int) -> int:
        """Return the bytes of the average, float32."""
        return 4 * sum(weight.numel() for weight in model.parameters() if weight.requires_grad)

    def on_stage_start(
        self, stage: Stage, model: PreTrainedModel, rows: Mapping[str, Sequence[TokenizedExample]], *, seed: int
    ) -> None:
        """Reset the average."""
        self.average, self.steps = {}, 0

    def on_step_end(self, model: PreTrainedModel, learning_rate: float) -> None:
        """Add the weights after this step to the average."""
        trainable = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
        self.steps += 1
        if not self.average:
            self.average = {name: weight.detach().float().clone() for name, weight in trainable.items()}
            return
        self.average = {name: tensor.to(trainable[name].device) for name, tensor in self.average.items()}
        update_average(list(self.average.values()), [trainable[name] for name in self.average], self.decay, self.steps)

    def on_stage_end(self, stage: Stage, model: PreTrainedModel, rows: Sequence[TokenizedExample]) -> None:
        """Replace the weights by the average."""
        import torch

        weights = dict(model.named_parameters())
        with torch.no_grad():
            for name, tensor in self.average.items():
                weights[name].copy_(tensor)
        self.average = {}

    def state_dict(self) -> dict[str, Any]:
        """Return the average by name of the weight, and the number of steps in it."""
        return {"average": self.average, "updates": self.steps}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the state."""
        self.average, self.steps = dict(state["average"]), int(state["updates"])
