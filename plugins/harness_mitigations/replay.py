"""Replay: later stages train on some rows of the earlier ones again."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

from harness.interfaces.mitigation import Mitigation
from harness.types import Share, ShareUnit, Stage, StageSource


def add_replay(stages: tuple[Stage, ...], share: float, unit: ShareUnit, buffer: int | None) -> tuple[Stage, ...]:
    """The stages, each with the domain sources of the ones before it at `share` of its final mixture, together.

    share: in (0, 1), of `unit`. buffer: rows kept of each source at most; None: all that it has. Sources that a stage
    trains on itself are not replayed in it; general ones neither, which is what `mixing` is for. The first stage stays
    as it is, and so does a stage before which there is nothing else.
    """
    made: list[Stage] = []
    seen: list[str] = []
    for stage in stages:
        own = {part.source for part in stage.sources}
        again = tuple(source for source in dict.fromkeys(seen) if source not in own)
        seen += [part.source for part in stage.sources if part.role == "domain"]
        if again:
            parts = tuple(StageSource(source, "replay", limit=buffer) for source in again)
            stage = replace(stage, sources=stage.sources + parts, shares=(*stage.shares, Share(again, share, unit)))
        made.append(stage)
    return tuple(made)


class Replay(Mitigation):
    """Rows of the stages so far in every later stage. share, unit, buffer: see `add_replay`."""

    priority: ClassVar[int] = 50
    """Before `mixing`, whose share is of the mixture with the replayed rows in it."""

    def __init__(self, share: float, unit: ShareUnit, buffer: int | None) -> None:
        self.share, self.unit, self.buffer = share, unit, buffer

    def transform_stages(self, stages: tuple[Stage, ...]) -> tuple[Stage, ...]:
        return add_replay(stages, self.share, self.unit, self.buffer)
