"""Several stages, one after the other, on the same weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from harness import Mode, Stage, StageSource
from harness.types import Role


class GeneralMode(Mode):
    """One stage, named `general`, on every row of the sources."""

    def __init__(self, sources: Sequence[str]) -> None:
        self.sources = tuple(sources)

    def stages(self) -> tuple[Stage, ...]:
        return (Stage("general", tuple(StageSource(source, "general") for source in self.sources)),)


class DomainMode(Mode):
    """One stage, named `domain`, on every row of the sources."""

    def __init__(self, sources: Sequence[str]) -> None:
        self.sources = tuple(sources)

    def stages(self) -> tuple[Stage, ...]:
        return (Stage("domain", tuple(StageSource(source, "domain") for source in self.sources)),)


class MixedMode(Mode):
    """One stage, named `mixed`. Without the mitigation `mixing` every row of both sides is used."""

    def __init__(self, domain: Sequence[str], general: Sequence[str]) -> None:
        self.stage_sources = tuple(StageSource(source, "domain") for source in domain)
        self.stage_sources += tuple(StageSource(source, "general") for source in general)

    def stages(self) -> tuple[Stage, ...]:
        return (Stage("mixed", self.stage_sources),)


ROLES: tuple[Role, ...] = ("domain", "general")


class ContinualMode(Mode):
    """The stages in the order of the spec; each may override training settings and mitigations."""

    def __init__(self, stages: Sequence[Mapping[str, Any]]) -> None:
        self.stage_specs = tuple(stages)

    def stages(self) -> tuple[Stage, ...]:
        return tuple(
            Stage(
                name=stage["name"],
                sources=tuple(StageSource(source, role) for role in ROLES for source in stage.get(role, ())),
                train=stage.get("train", {}),
                suites=tuple(stage.get("suites", ())),
                mitigations=stage.get("mitigations"),
                **({"adapter": stage["adapter"]} if "adapter" in stage else {}),
            )
            for stage in self.stage_specs
        )
