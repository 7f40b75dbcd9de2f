"""Training rows that truncation leaves without a trained token: how many, which, and whether the spec allows so many.

They train nothing, so they are left out; what is left is no longer what the data says, short rows standing for all.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Untrained:
    """The rows of one source that are left out so.

    rows: of the source that may be trained on. lost: of these, at `max_length`, the length at which most are lost.
    places: of the first ones lost at any length.
    """

    rows: int
    lost: int
    max_length: int
    places: tuple[str, ...]

    @property
    def share(self) -> float:
        """Lost rows / rows, in [0, 1]."""
        return self.lost / self.rows
