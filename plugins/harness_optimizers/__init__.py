"""The built-in optimizers, and the schedules of their learning rate."""

from __future__ import annotations

from harness import Component, hookimpl
from harness_optimizers import adafactor, adamw, lion, mofo, muon, schedules, sgd

__all__ = ["harness_optimizers", "harness_schedulers"]

OPTIMIZER_MODULES = (adamw, adafactor, lion, mofo, muon, sgd)


@hookimpl
def harness_optimizers() -> dict[str, Component]:
    """Return the built-in optimizers by name."""
    return {name: component for module in OPTIMIZER_MODULES for name, component in module.COMPONENTS.items()}


@hookimpl
def harness_schedulers() -> dict[str, Component]:
    """Return the built-in schedules by name."""
    return schedules.COMPONENTS
