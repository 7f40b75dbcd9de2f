"""One stage on domain conversations."""

from __future__ import annotations

from collections.abc import Sequence

from harness import Mode, Part, Stage


class Domain(Mode):
    """One stage, named `domain`, on every row of the sources."""

    def __init__(self, sources: Sequence[str]) -> None:
        self.sources = tuple(sources)

    def stages(self) -> tuple[Stage, ...]:
        return (Stage("domain", tuple(Part(source, "domain") for source in self.sources)),)
