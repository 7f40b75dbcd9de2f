"""Mode `mixed`: one stage on domain and general sources."""

from __future__ import annotations

from collections.abc import Sequence

from harness import Component, Mode, Stage, StageSource
from harness_modes.source_list import source_list_option

COMPONENTS: dict[str, Component] = {
    "mixed": Component(
        summary="One stage on conversations of a domain with general ones mixed in.",
        factory="harness_modes.mixed:MixedMode",
        options={
            "domain": source_list_option("Sources of the domain."),
            "general": source_list_option(
                "Sources of general conversations; the mitigation `mixing` sets their share."
            ),
        },
        required=("domain", "general"),
    ),
}


class MixedMode(Mode):
    """One stage, named `mixed`. Without the mitigation `mixing` it trains on every row of all sources."""

    def __init__(self, domain: Sequence[str], general: Sequence[str]) -> None:
        self.stage_sources = (
            *(StageSource(source, "domain") for source in domain),
            *(StageSource(source, "general") for source in general),
        )

    def stages(self) -> tuple[Stage, ...]:
        """Return the one stage."""
        return (Stage("mixed", self.stage_sources),)
