"""A lower learning rate: mitigation number zero, and the control for every other.

Forgetting grows with how far the weights move, so a lower learning rate alone removes much of it; a method that is not
compared with one at equal gain may be no more than that. See Kalajdzievski, 2024, arXiv:2401.05605.
"""

from __future__ import annotations

from dataclasses import replace

from harness import Mitigation, Stage


class LrScale(Mitigation):
    """Multiply every stage's peak learning rate by `factor`."""

    def __init__(self, factor: float) -> None:
        self.factor = factor

    def transform_stages(self, stages: tuple[Stage, ...]) -> tuple[Stage, ...]:
        """The stages with their own or the spec's learning rate scaled; a stage without one stays as it is."""
        return tuple(self._scale_learning_rate(stage) for stage in stages)

    def _scale_learning_rate(self, stage: Stage) -> Stage:
        rate = stage.train.get("learning_rate")
        return stage if rate is None else replace(stage, train={**stage.train, "learning_rate": rate * self.factor})
