"""What can show phases that move, and what shows none."""

from __future__ import annotations

from typing import Protocol


class Phases(Protocol):
    """A way to show phases that move."""

    brief: bool
    """Whether phases that are soon over are not worth a line."""

    def update(self, stage: int, phase: str, done: int, total: int, note: str, unit: str) -> None:
        """A phase has come to `done` of `total` (0: unknown)."""

    def end(self) -> None:
        """Every phase that still goes on is over."""

    def break_off(self) -> None:
        """Every phase that still goes on has been broken off."""


class Nothing:
    """Shows no phase at all."""

    brief = False

    def update(self, stage: int, phase: str, done: int, total: int, note: str, unit: str) -> None:
        """Shows nothing."""

    def end(self) -> None:
        """Shows nothing."""

    def break_off(self) -> None:
        """Shows nothing."""
