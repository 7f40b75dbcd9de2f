"""One stage on general conversations."""

from __future__ import annotations

from collections.abc import Sequence

from harness import Mode, Part, Stage


class General(Mode):
    """One stage, named `general`, on every row of the sources."""

    def __init__(self, sources: Sequence[str]) -> None:
        self.sources = tuple(sources)

    def stages(self) -> tuple[Stage, ...]:
        return (Stage("general", tuple(Part(source, "general") for source in self.sources)),)
