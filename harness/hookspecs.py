"""The hooks that a plugin package may implement: the table of contents for plugin authors.

A package names a module under the entry-point group `harness`; that module implements any of these.
The built-in components come through the same door.
"""

from __future__ import annotations

import pluggy

from harness.interfaces.component import Component
from harness.types import Event

hookspec = pluggy.HookspecMarker("harness")
hookimpl = pluggy.HookimplMarker("harness")


@hookspec
def harness_templates() -> dict[str, Component]:  # type: ignore[empty-body]
    """Ways to render a conversation as text with its trained spans."""


@hookspec
def harness_sources() -> dict[str, Component]:  # type: ignore[empty-body]
    """Places that rows come from."""


@hookspec
def harness_modes() -> dict[str, Component]:  # type: ignore[empty-body]
    """Ways to lay sources out as training stages."""


@hookspec
def harness_mitigations() -> dict[str, Component]:  # type: ignore[empty-body]
    """Ways to forget less."""


@hookspec
def harness_metrics() -> dict[str, Component]:  # type: ignore[empty-body]
    """Numbers drawn from a model and held-out rows."""


@hookspec
def harness_on_event(event: Event) -> None:
    """Called with each event of a run; the tracker and the progress bars are listeners among others."""
