"""Training rows that truncation leaves without a trained token: how many, which, and whether the spec allows so many.

They train nothing, so they are left out; what is left is no longer what the data says, short rows standing for all.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from harness.errors import HarnessError
from harness.legible import above


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


def judged(found: Mapping[str, Untrained], allowed: float | None) -> Iterator[str | HarnessError]:
    """A warning for each source that loses rows, or an error where their share is above `allowed`; None: any.

    The rows stand below a warning, as `Plan.warnings` has them.
    """
    for name, one in found.items():
        if not one.lost:
            continue
        what = (
            f"{one.lost:,} of its {one.rows:,} training rows have no trained token within {one.max_length} tokens and "
            "are left out"
        )
        left = one.lost - len(one.places)
        more = [f"and {left:,} more"] if left > 0 else []
        if allowed is None or one.share <= allowed:
            yield "\n".join([f"sources.{name}: {what}", *one.places, *more])
        else:
            named = " ".join([", ".join(one.places), *more])
            hint = "raise train.max_length, take these rows out or shorten their prompts, or raise checks.untrained "
            yield HarnessError(f"sources.{name}", f"{what}: {named}", f"{hint}({allowed:g}) to {above(one.share)}")
