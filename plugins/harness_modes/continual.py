"""Several stages, one after the other, on the same weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from harness import Mode, Part, Stage
from harness.contracts import Role

ROLES: tuple[Role, ...] = ("domain", "general")


class Continual(Mode):
    """The stages in the order of the spec; each may override training settings and mitigations."""

    def __init__(self, stages: Sequence[Mapping[str, Any]]) -> None:
        self.given = tuple(stages)

    def stages(self) -> tuple[Stage, ...]:
        return tuple(
            Stage(
                name=stage["name"],
                parts=tuple(Part(source, role) for role in ROLES for source in stage.get(role, ())),
                train=stage.get("train", {}),
                suites=tuple(stage.get("suites", ())),
                mitigations=stage.get("mitigations"),
                **({"adapter": stage["adapter"]} if "adapter" in stage else {}),
            )
            for stage in self.given
        )
