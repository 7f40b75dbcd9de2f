"""Optimizer `lion` (Chen et al., 2023, arXiv:2302.06675)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from harness import Component, Optimizer

if TYPE_CHECKING:
    import torch

COMPONENTS: dict[str, Component] = {
    "lion": Component(
        summary="Lion: every weight moves by the learning rate, in the direction of the momentum's sign.",
        factory="harness_optimizers.lion:Lion",
        options={
            "betas": {
                "type": "array",
                "items": {"type": "number", "minimum": 0, "exclusiveMaximum": 1},
                "minItems": 2,
                "maxItems": 2,
                "default": [0.9, 0.99],
                "description": "The momentum's fraction in the update, and its decay.",
            },
        },
        # The paper: 3 to 10 times smaller than for AdamW.
        typical_ranges={"train.learning_rate": (1e-6, 1.5e-5), "train.weight_decay": (0.0, 1.0)},
    ),
}


class Lion(Optimizer):
    """Lion. Its state takes 4 bytes a weight."""

    works_on_shards: ClassVar[bool] = True
    bytes_per_weight: ClassVar[float] = 4.0

    def __init__(self, betas: Sequence[float]) -> None:
        self.betas = (float(betas[0]), float(betas[1]))

    def build(self, param_groups: Sequence[dict[str, Any]], settings: Mapping[str, Any]) -> torch.optim.Optimizer:
        """Return the optimizer."""
        from harness_optimizers.lion_step import LionStep

        return LionStep(param_groups, settings["learning_rate"], self.betas)
