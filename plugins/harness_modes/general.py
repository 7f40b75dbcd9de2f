"""Mode `general`: instruction tuning in one stage."""

from __future__ import annotations

from collections.abc import Sequence

from harness import Component, Mode, Stage, StageSource
from harness_modes.source_list import source_list_option

COMPONENTS: dict[str, Component] = {
    "general": Component(
        summary="One stage on general conversations: instruction tuning.",
        factory="harness_modes.general:GeneralMode",
        options={"sources": source_list_option("Sources of general conversations.")},
        required=("sources",),
    ),
}


class GeneralMode(Mode):
    """One stage, named `general`, on every row of the sources."""

    def __init__(self, sources: Sequence[str]) -> None:
        self.sources = tuple(sources)

    def stages(self) -> tuple[Stage, ...]:
        """Return the one stage."""
        return (Stage("general", tuple(StageSource(source, "general") for source in self.sources)),)
