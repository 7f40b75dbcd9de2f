"""The hooks that a plugin package may implement: the table of contents for plugin authors.

A package names a module under the entry-point group `harness`. That module implements any of these hooks. The built-in
components are registered through the same entry-point group.
"""

from __future__ import annotations

import pluggy

from harness.events import Event
from harness.interfaces.component import Component

hookspec = pluggy.HookspecMarker("harness")
hookimpl = pluggy.HookimplMarker("harness")


@hookspec
def harness_templates() -> dict[str, Component]:  # type: ignore[empty-body]
    """Return templates: they render a conversation as text and mark the trained spans."""


@hookspec
def harness_sources() -> dict[str, Component]:  # type: ignore[empty-body]
    """Return sources: they yield raw rows."""


@hookspec
def harness_modes() -> dict[str, Component]:  # type: ignore[empty-body]
    """Return modes: they arrange sources as training stages."""


@hookspec
def harness_mitigations() -> dict[str, Component]:  # type: ignore[empty-body]
    """Return mitigations: they reduce forgetting."""


@hookspec
def harness_metrics() -> dict[str, Component]:  # type: ignore[empty-body]
    """Return metrics: they compute scores from a model and held-out rows."""


@hookspec
def harness_on_event(event: Event) -> None:
    """Receive each event of a run.

    The MLflow tracker and the console are listeners like any other. A listener that raises is reported once and not
    called again.

    Args:
        event: An instance of one of the classes in `harness.events`.
    """
