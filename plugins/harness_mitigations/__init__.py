"""The mitigations that come with harness: ways to forget less."""

from __future__ import annotations

from harness import Component, hookimpl
from harness_mitigations import declared

__all__ = ["harness_mitigations"]


@hookimpl
def harness_mitigations() -> dict[str, Component]:
    return {name: component for family in declared.DECLARATION_MODULES for name, component in family.COMPONENTS.items()}
