"""Mitigation `lr_scale`: a lower learning rate, the control for every other mitigation.

Forgetting grows with the distance that the weights move, so a lower learning rate alone removes much of it. A method
that is not compared with it at equal gain may be no better. See Lin et al., 2025, arXiv:2509.20758.
"""

from __future__ import annotations

from dataclasses import replace

from harness import Component, Mitigation, Stage

COMPONENTS: dict[str, Component] = {
    "lr_scale": Component(
        summary="Trains with a lower learning rate: the control that every other mitigation must beat.",
        factory="harness_mitigations.lr_scale:LrScale",
        options={
            "factor": {
                "type": "number",
                "exclusiveMinimum": 0,
                "default": 0.3,
                "description": "Every stage's learning rate is multiplied by it. Usual: 0.1 to 0.3.",
            },
        },
    ),
}


class LrScale(Mitigation):
    """Multiply every stage's peak learning rate by `factor`."""

    works_on_shards = True

    def __init__(self, factor: float) -> None:
        self.factor = factor

    def transform_stages(self, stages: tuple[Stage, ...]) -> tuple[Stage, ...]:
        """Return the stages with their learning rate scaled; a stage without one is unchanged."""
        return tuple(self._scale_learning_rate(stage) for stage in stages)

    def _scale_learning_rate(self, stage: Stage) -> Stage:
        rate = stage.train.get("learning_rate")
        return stage if rate is None else replace(stage, train={**stage.train, "learning_rate": rate * self.factor})
