"""One stage on domain and general conversations."""

from __future__ import annotations

from collections.abc import Sequence

from harness import Mode, Part, Stage


class Mixed(Mode):
    """One stage, named `mixed`. Without the mitigation `mixing` every row of both sides is used."""

    def __init__(self, domain: Sequence[str], general: Sequence[str]) -> None:
        self.parts = tuple(Part(source, "domain") for source in domain)
        self.parts += tuple(Part(source, "general") for source in general)

    def stages(self) -> tuple[Stage, ...]:
        return (Stage("mixed", self.parts),)
