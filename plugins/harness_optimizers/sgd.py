"""Optimizer `sgd`: stochastic gradient descent with momentum."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from harness import Component, Optimizer

if TYPE_CHECKING:
    import torch

COMPONENTS: dict[str, Component] = {
    "sgd": Component(
        summary="Stochastic gradient descent with momentum; its weight decay is part of the gradient.",
        factory="harness_optimizers.sgd:Sgd",
        options={
            "momentum": {
                "type": "number",
                "minimum": 0,
                "exclusiveMaximum": 1,
                "default": 0.9,
                "description": "Fraction of the last update that the next one keeps. 0: no state.",
            },
        },
        # Steps are in proportion to the clipped gradient, so rates are far above those of AdamW.
        typical_ranges={"train.learning_rate": (1e-3, 1.0)},
    ),
}


class Sgd(Optimizer):
    """SGD. Its state takes 4 bytes a weight, or none without momentum."""

    bytes_per_weight: ClassVar[float] = 4.0

    def __init__(self, momentum: float) -> None:
        self.momentum = momentum

    def build(self, param_groups: Sequence[dict[str, Any]], settings: Mapping[str, Any]) -> torch.optim.Optimizer:
        """Return torch's SGD."""
        import torch

        return torch.optim.SGD(param_groups, lr=settings["learning_rate"], momentum=self.momentum, fused=True)
