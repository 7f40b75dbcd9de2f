"""Mitigation `replay`: later stages also train on some rows of the earlier ones."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

from harness import Component
from harness.interfaces.mitigation import Mitigation
from harness.types import Share, ShareUnit, Stage, StageSource
from harness_mitigations.mixing import UNIT_OPTION

COMPONENTS: dict[str, Component] = {
    "replay": Component(
        summary="Trains later stages on some rows of the earlier ones.",
        factory="harness_mitigations.replay:Replay",
        options={
            "share": {
                "type": "number",
                "exclusiveMinimum": 0,
                "exclusiveMaximum": 1,
                "default": 0.1,
                "description": "Share of all earlier stages together in a later stage's final mixture, in `unit`.",
            },
            "unit": UNIT_OPTION,
            "buffer": {
                "type": ["integer", "null"],
                "minimum": 1,
                "default": None,
                "description": "Maximum number of rows of each earlier source, chosen by the seed; null: all.",
            },
        },
    ),
}


def add_replay(stages: tuple[Stage, ...], share: float, unit: ShareUnit, buffer: int | None) -> tuple[Stage, ...]:
    """Add the domain sources of all previous stages to each stage.

    A source that a stage trains on itself is not replayed in it. General sources are not replayed: `mixing` adds those.
    The first stage is unchanged, and so is a stage without other earlier sources.

    Args:
        stages: the stages in order.
        share: share of the replayed sources together in a stage's final mixture, in (0, 1).
        unit: the unit of `share`.
        buffer: maximum number of rows of each source; None: all.
    """
    result: list[Stage] = []
    earlier_sources: list[str] = []
    for stage in stages:
        stage_sources = {part.source for part in stage.sources}
        replayed = tuple(source for source in dict.fromkeys(earlier_sources) if source not in stage_sources)
        earlier_sources += [part.source for part in stage.sources if part.role == "domain"]
        if replayed:
            parts = tuple(StageSource(source, "replay", limit=buffer) for source in replayed)
            shares = (*stage.shares, Share(replayed, share, unit))
            stage = replace(stage, sources=stage.sources + parts, shares=shares)
        result.append(stage)
    return tuple(result)


class Replay(Mitigation):
    """Add rows of all previous stages to every later one.

    Args:
        share: see `add_replay`.
        unit: see `add_replay`.
        buffer: see `add_replay`.
    """

    priority: ClassVar[int] = 50
    """Before `mixing`, whose share is of the mixture with the replayed rows."""

    def __init__(self, share: float, unit: ShareUnit, buffer: int | None) -> None:
        self.share, self.unit, self.buffer = share, unit, buffer

    def transform_stages(self, stages: tuple[Stage, ...]) -> tuple[Stage, ...]:
        """Return the stages with the replayed sources added."""
        return add_replay(stages, self.share, self.unit, self.buffer)
