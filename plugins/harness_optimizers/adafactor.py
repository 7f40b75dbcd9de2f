"""Optimizer `adafactor` (Shazeer and Stern, 2018, arXiv:1804.04235)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from harness import Component, Optimizer

if TYPE_CHECKING:
    import torch

COMPONENTS: dict[str, Component] = {
    "adafactor": Component(
        summary="Adafactor: the state of a matrix is one number a row and one a column.",
        factory="harness_optimizers.adafactor:Adafactor",
        options={
            "decay_rate": {
                "type": "number",
                "exclusiveMinimum": 0,
                "maximum": 1,
                "default": 0.8,
                "description": "The mean square of step k keeps the fraction 1 - k^-decay_rate of the one before.",
            },
            "clip_threshold": {
                "type": "number",
                "exclusiveMinimum": 0,
                "default": 1.0,
                "description": "Maximum root mean square of a matrix's update, as a factor of the learning rate.",
            },
        },
    ),
}


class Adafactor(Optimizer):
    """Adafactor with the learning rate of the schedule and without momentum."""

    bytes_per_weight: ClassVar[float] = 0.1

    def __init__(self, decay_rate: float, clip_threshold: float) -> None:
        self.decay_rate, self.clip_threshold = decay_rate, clip_threshold

    def build(self, param_groups: Sequence[dict[str, Any]], settings: Mapping[str, Any]) -> torch.optim.Optimizer:
        """Return transformers' Adafactor, whose learning rate is not scaled by the size of the weights."""
        from transformers.optimization import Adafactor as TransformersAdafactor

        return TransformersAdafactor(
            param_groups,
            lr=settings["learning_rate"],
            decay_rate=-self.decay_rate,
            clip_threshold=self.clip_threshold,
            scale_parameter=False,
            relative_step=False,
        )
