"""Mitigation `ema`: each stage ends with an average of its weights, by default an exponential moving one.

With theta_t the weights after step t of n, the average is sum of d^(n-t) theta_t / sum of d^(n-t). It is bias-corrected
like Adam's moments: the weights before the first step are not part of it, and d need not fit the number of steps.

With `last` it is the mean of the weights at the last checkpoints (LAWA, arXiv:2209.14981). Their steps are known before
the stage, so one running mean is stored and no checkpoint is read again.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from harness import Component
from harness.errors import HarnessError, RunError
from harness.interfaces.mitigation import Mitigation
from harness.types import Stage, TokenizedExample
from harness_mitigations import adapter_common

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

COMPONENTS: dict[str, Component] = {
    "ema": Component(
        summary="Ends each stage with an average of its weights: exponential, or of its last checkpoints.",
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
            "last": {
                "type": ["integer", "null"],
                "minimum": 1,
                "default": None,
                "description": "Instead of the exponential average: the mean of the weights at so many last "
                "checkpoints of the stage, e.g. 3.",
            },
        },
    ),
}


def ema_fraction(decay: float, steps: int) -> float:
    """Return the fraction of the newest weights in the bias-corrected exponential average.

    Args:
        decay: d, in [0, 1).
        steps: number of steps in the average, the newest included.
    """
    return (1 - decay) / (1 - decay**steps) if decay > 0 else 1.0


def update_average(average: Sequence[Tensor], weights: Sequence[Tensor], fraction: float) -> None:
    """Add the weights after one more step to the average, in place.

    Args:
        average: float32 tensors, of the shapes of `weights`.
        weights: the weights after the step.
        fraction: their part of the new average, in (0, 1].
    """
    import torch

    torch._foreach_lerp_(list(average), [weight.detach().float() for weight in weights], fraction)


def last_saves(stage: Stage, count: int) -> tuple[int, ...]:
    """Return the steps of the last `count` checkpoints of a stage; of all, with a warning, if there are fewer."""
    if len(stage.planned_saves) < count:
        warnings.warn(
            f"mitigations.ema.last is {count}, but the stage '{stage.name}' writes {len(stage.planned_saves)} "
            "checkpoints: their mean is used. Lower train.save_steps for more",
            stacklevel=2,
        )
    return stage.planned_saves[-count:]


class Ema(Mitigation):
    """Average the trainable weights over each stage and continue with the average.

    Args:
        decay: d, in [0, 1); 0 changes nothing.
        last: number of last checkpoints whose mean replaces the exponential average; None: the exponential one.
    """

    priority: ClassVar[int] = 10

    def __init__(self, decay: float, last: int | None) -> None:
        self.decay, self.last = decay, last
        self.average: dict[str, Tensor] = {}
        self.steps = 0  # that are part of the average
        self.trained_steps = 0
        self.averaged_steps: tuple[int, ...] = ()  # for `last`

    def check_compatible(self, others: Mapping[str, Mitigation]) -> None:
        """Reject an adapter that is merged after each stage."""
        adapter_common.refuse_merged_lora("ema", others)

    def check_stage(self, stage: Stage) -> None:
        """With `last`, reject a stage without checkpoints, or with early stopping: the last ones are not known then."""
        if self.last is None:
            return
        if stage.train.get("early_stopping") is not None:
            what = f"the stage '{stage.name}' has early stopping, so its last checkpoints are not known beforehand"
            raise HarnessError("mitigations.ema.last", what, "set train.early_stopping to null, or last to null")
        if stage.train.get("save_steps") is None and stage.train.get("save_epochs") is None:
            hint = "set train.save_steps or train.save_epochs, or last to null"
            what = f"the stage '{stage.name}' writes no checkpoints to average"
            raise HarnessError("mitigations.ema.last", what, hint)

    def held_bytes(self, model: PreTrainedModel, *, itemsize: int) -> int:
        """Return the bytes of the average, float32."""
        return 4 * sum(weight.numel() for weight in model.parameters() if weight.requires_grad)

    def on_stage_start(
        self, stage: Stage, model: PreTrainedModel, rows: Mapping[str, Sequence[TokenizedExample]], *, seed: int
    ) -> None:
        """Reset the average, and choose the checkpoints of `last`."""
        self.average, self.steps, self.trained_steps = {}, 0, 0
        if self.last is not None:
            self.averaged_steps = last_saves(stage, self.last)

    def on_step_end(self, model: PreTrainedModel, learning_rate: float) -> None:
        """Add the weights after this step to the average."""
        self.trained_steps += 1
        if self.last is not None and self.trained_steps not in self.averaged_steps:
            return
        trainable = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
        self.steps += 1
        if not self.average:
            self.average = {name: weight.detach().float().clone() for name, weight in trainable.items()}
            return
        self.average = {name: tensor.to(trainable[name].device) for name, tensor in self.average.items()}
        fraction = ema_fraction(self.decay, self.steps) if self.last is None else 1 / self.steps
        update_average(list(self.average.values()), [trainable[name] for name in self.average], fraction)

    def on_stage_end(self, stage: Stage, model: PreTrainedModel, rows: Sequence[TokenizedExample]) -> None:
        """Replace the weights by the average."""
        import torch

        weights = dict(model.named_parameters())
        with torch.no_grad():
            for name, tensor in self.average.items():
                weights[name].copy_(tensor)
        self.average = {}

    def state_dict(self) -> dict[str, Any]:
        """Return the average by name of the weight, the number of steps in it, and of those of the stage so far."""
        return {"average": self.average, "updates": self.steps, "trained": self.trained_steps}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the state.

        Raises:
            RunError: an earlier version of ema wrote it, which did not count the steps of the stage.
        """
        if "trained" not in state:
            hint = "train the stage again without --resume, or resume with the version of harness that started the run"
            raise RunError("mitigations.ema", "the checkpoint is of an earlier version of ema", hint)
        self.average, self.steps = dict(state["average"]), int(state["updates"])
        self.trained_steps = int(state["trained"])
