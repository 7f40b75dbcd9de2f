"""An exponential moving average of the weights over a stage's updates takes the place of the last weights.

With theta_t the weights after update t of n, the average is sum of d^(n-t) theta_t / sum of d^(n-t): that of Adam's
moments, corrected for its start, so that the weights before the first update take no part and d does not have to fit
the number of updates.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from harness.interfaces.mitigation import Mitigation
from harness.types import Stage, TokenizedExample

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel


def update_average(average: Sequence[Tensor], weights: Sequence[Tensor], decay: float, steps: int) -> None:
    """Take the weights after one more update into the average, in place.

    average, weights: equally long, of the same shapes; the average float32. steps: how many it holds with this one.
    """
    import torch

    share = (1 - decay) / (1 - decay**steps) if decay > 0 else 1.0
    torch._foreach_lerp_(list(average), [weight.detach().float() for weight in weights], share)


class Ema(Mitigation):
    """Average the weights that move over each stage, and go on with the average. decay: d, a share in [0, 1)."""

    priority: ClassVar[int] = 10

    def __init__(self, decay: float) -> None:
        self.decay = decay
        self.average: dict[str, Tensor] = {}
        self.steps = 0

    def on_stage_start(
        self, stage: Stage, model: PreTrainedModel, rows: Mapping[str, Sequence[TokenizedExample]]
    ) -> None:
        """Forget the last stage's average."""
        self.average, self.steps = {}, 0

    def on_step_end(self, model: PreTrainedModel, learning_rate: float) -> None:
        """Take the weights after this update into the average."""
        moving = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
        self.steps += 1
        if not self.average:
            self.average = {name: weight.detach().float().clone() for name, weight in moving.items()}
            return
        self.average = {name: tensor.to(moving[name].device) for name, tensor in self.average.items()}
        update_average(list(self.average.values()), [moving[name] for name in self.average], self.decay, self.steps)

    def on_stage_end(self, stage: Stage, model: PreTrainedModel, rows: Sequence[TokenizedExample]) -> None:
        """Put the average in the place of the weights."""
        import torch

        weights = dict(model.named_parameters())
        with torch.no_grad():
            for name, tensor in self.average.items():
                weights[name].copy_(tensor)
        self.average = {}

    def state_dict(self) -> dict[str, Any]:
        """The average by name of the weight, and how many updates it holds."""
        return {"average": self.average, "updates": self.steps}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what `state_dict` gave."""
        self.average, self.steps = dict(state["average"]), int(state["updates"])
