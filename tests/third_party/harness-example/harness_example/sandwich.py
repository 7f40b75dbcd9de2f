"""A mode with the stages general, domain, general."""

from __future__ import annotations

from harness import Mode, Stage, StageSource


class Sandwich(Mode):
    """Three stages: `below` and `above` train on the general source, `filling` on the domain."""

    def __init__(self, bread: str, filling: str) -> None:
        self.bread, self.filling = bread, filling

    def stages(self) -> tuple[Stage, ...]:
        """Return the three stages."""
        bread, filling = (StageSource(self.bread, "general"),), (StageSource(self.filling, "domain"),)
        return (Stage("below", bread), Stage("filling", filling), Stage("above", bread, {"epochs": 2}))
