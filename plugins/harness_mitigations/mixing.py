"""Mixing general conversations into what is learned: the plainest way to forget less."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

from harness import HarnessError, Mitigation, Part, Stage
from harness.contracts import Unit


def mix(stage: Stage, share: float, unit: Unit, source: str | None) -> Stage:
    """The stage with its general parts at `share` of the final mixture, evenly split among them.

    share: in (0, 1), of the mixture's `unit`. source: a general source for a stage that has none.
    Raises HarnessError when there is nothing general to mix in, or nothing else to mix it into.
    """
    where = "mitigations.mixing"
    general = [part for part in stage.parts if part.role == "general"]
    others = tuple(part for part in stage.parts if part.role != "general")
    if not others:
        what = f"the stage {stage.name!r} trains on general conversations alone, so there is nothing to mix them into"
        raise HarnessError(where, what, "leave mixing out, or use the mode 'mixed'")
    if not general:
        if source is None:
            what = f"the stage {stage.name!r} has no general source"
            raise HarnessError(where, what, "name one in mitigations.mixing.source, or use the mode 'mixed'")
        general = [Part(source, "general")]
    each = share / len(general)
    return replace(stage, parts=others + tuple(replace(part, share=each, unit=unit) for part in general))


class Mixing(Mitigation):
    """States the share of general conversations in every stage. Applied last, so that the share is exact."""

    order: ClassVar[int] = 100

    def __init__(self, share: float, unit: Unit, source: str | None) -> None:
        self.share, self.unit, self.source = share, unit, source

    def plan(self, stages: tuple[Stage, ...]) -> tuple[Stage, ...]:
        return tuple(mix(stage, self.share, self.unit, self.source) for stage in stages)
