"""Mode `domain`: one stage on a domain alone."""

from __future__ import annotations

from collections.abc import Sequence

from harness import Component, Mode, Stage, StageSource
from harness_modes.source_list import source_list_option

COMPONENTS: dict[str, Component] = {
    "domain": Component(
        summary="One stage on conversations of a domain, without general ones.",
        factory="harness_modes.domain:DomainMode",
        options={"sources": source_list_option("Sources of the domain.")},
        required=("sources",),
    ),
}


class DomainMode(Mode):
    """One stage, named `domain`, on every row of the sources."""

    def __init__(self, sources: Sequence[str]) -> None:
        self.sources = tuple(sources)

    def stages(self) -> tuple[Stage, ...]:
        """Return the one stage."""
        return (Stage("domain", tuple(StageSource(source, "domain") for source in self.sources)),)
