"""The built-in modes: how sources become training stages."""

from __future__ import annotations

from harness import Component, hookimpl
from harness_modes import continual, curriculum, domain, general, mixed

__all__ = ["harness_modes"]

COMPONENT_MODULES = (general, domain, mixed, continual, curriculum)


@hookimpl
def harness_modes() -> dict[str, Component]:
    """Return the built-in modes by name."""
    return {name: component for module in COMPONENT_MODULES for name, component in module.COMPONENTS.items()}
