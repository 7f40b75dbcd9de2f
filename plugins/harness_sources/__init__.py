"""The built-in sources of rows, one module per kind of file or service."""

from __future__ import annotations

from harness import Component, hookimpl
from harness_sources import arrow, csv_table, hub, json_sources, lm_eval_task, text

__all__ = ["harness_sources"]

COMPONENT_MODULES = (json_sources, csv_table, arrow, text, hub, lm_eval_task)


@hookimpl
def harness_sources() -> dict[str, Component]:
    """Return the declarations of the built-in sources, by name."""
    return {name: component for module in COMPONENT_MODULES for name, component in module.COMPONENTS.items()}
