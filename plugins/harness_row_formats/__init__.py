"""The built-in row formats that a source names in `form`, besides those that are detected."""

from __future__ import annotations

from harness import Component, hookimpl
from harness_row_formats import columns_template

__all__ = ["harness_row_formats"]

COMPONENT_MODULES = (columns_template,)


@hookimpl
def harness_row_formats() -> dict[str, Component]:
    """Return the row formats by name."""
    return {name: component for module in COMPONENT_MODULES for name, component in module.COMPONENTS.items()}
