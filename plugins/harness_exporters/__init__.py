"""The built-in exporters: the trained model of a run in another form."""

from __future__ import annotations

from harness import Component, hookimpl
from harness_exporters import gguf, hub, merged, mlflow_model, ollama

__all__ = ["harness_exporters"]

COMPONENT_MODULES = (merged, gguf, ollama, hub, mlflow_model)


@hookimpl
def harness_exporters() -> dict[str, Component]:
    """Return the built-in exporters by name."""
    return {name: component for module in COMPONENT_MODULES for name, component in module.COMPONENTS.items()}
