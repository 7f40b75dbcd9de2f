"""A mitigation that trains less, to forget less."""

from __future__ import annotations

from dataclasses import replace

from harness import Mitigation, Stage


class ShortStages(Mitigation):
    """Every stage ends after `steps` optimizer steps."""

    def __init__(self, steps: int) -> None:
        self.steps = steps

    def transform_stages(self, stages: tuple[Stage, ...]) -> tuple[Stage, ...]:
        """Return the stages with the number of steps set."""
        return tuple(replace(stage, train={**stage.train, "steps": self.steps}) for stage in stages)
