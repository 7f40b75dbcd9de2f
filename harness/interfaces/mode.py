"""The base class of modes: how sources become training stages."""

from __future__ import annotations

from harness.types import Stage


class Mode:
    """A training schedule: the stages of a run and the sources of each. Its module imports nothing heavy."""

    def stages(self) -> tuple[Stage, ...]:
        """Return the stages in order. `Stage.train` holds only what differs from the spec's `train`."""
        raise NotImplementedError
