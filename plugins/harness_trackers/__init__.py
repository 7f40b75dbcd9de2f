"""The built-in trackers: where the course of a run is recorded."""

from __future__ import annotations

from harness import Component, hookimpl
from harness_trackers import mlflow_declaration, tensorboard, weights_and_biases

__all__ = ["harness_trackers"]

COMPONENT_MODULES = (mlflow_declaration, tensorboard, weights_and_biases)


@hookimpl
def harness_trackers() -> dict[str, Component]:
    """Return the built-in trackers by name."""
    return {name: component for module in COMPONENT_MODULES for name, component in module.COMPONENTS.items()}
