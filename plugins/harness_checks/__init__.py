"""The built-in data checks that a spec can add to those that always run."""

from __future__ import annotations

from harness import Component, hookimpl
from harness_checks import personal_data

__all__ = ["harness_checks"]

COMPONENT_MODULES = (personal_data,)


@hookimpl
def harness_checks() -> dict[str, Component]:
    """Return the built-in checks by name."""
    return {name: component for module in COMPONENT_MODULES for name, component in module.COMPONENTS.items()}
