"""Optimizer `mofo`: Adam that moves only weights with a large momentum (Chen et al., 2024, arXiv:2407.20999)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from harness import Component, Optimizer
from harness_optimizers.adamw import ADAM_OPTIONS

if TYPE_CHECKING:
    import torch

COMPONENTS: dict[str, Component] = {
    "mofo": Component(
        summary="Adam that moves in each tensor only the weights with the largest momentum, to forget less.",
        factory="harness_optimizers.mofo:Mofo",
        options={
            "fraction": {
                "type": "number",
                "exclusiveMinimum": 0,
                "maximum": 1,
                "default": 0.15,
                "description": "Fraction of the weights of each tensor that a step moves, rounded up. Usual: 0.05 to "
                "0.2. 1: AdamW.",
            },
            **ADAM_OPTIONS,
        },
    ),
}


class Mofo(Optimizer):
    """Momentum-filtered Adam. Its state takes 8 bytes a weight, as that of AdamW.

    Args:
        fraction: fraction of the weights of each tensor that a step moves, in (0, 1].
        betas: decay of the running means of the gradient and of its square.
        eps: added to the root of the mean square.
    """

    def __init__(self, fraction: float, betas: Sequence[float], eps: float) -> None:
        self.fraction, self.betas, self.eps = fraction, (float(betas[0]), float(betas[1])), eps

    def build(self, param_groups: Sequence[dict[str, Any]], settings: Mapping[str, Any]) -> torch.optim.Optimizer:
        """Return the optimizer."""
        from harness_optimizers.mofo_step import MofoStep

        return MofoStep(param_groups, settings["learning_rate"], self.fraction, self.betas, self.eps)
