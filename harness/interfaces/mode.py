"""Base class of modes."""

from __future__ import annotations

from harness.types import Stage


class Mode:
    """A way to lay sources out as training stages. Its module imports nothing heavy."""

    def stages(self) -> tuple[Stage, ...]:
        """The stages in order. `Stage.train` holds only what differs from the spec's `train`."""
        raise NotImplementedError
