"""What a plugin declares about one of its components."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

COMPONENT_TYPES = ("templates", "sources", "modes", "mitigations", "metrics")


@dataclass(frozen=True)
class Component:
    """What a plugin declares about one of its components. Declaring imports nothing heavy.

    summary: one sentence, shown by `harness plugins` and in the editor.
    factory: "package.module:factory", imported only when a run needs it, called as `factory(**options)`.
    options: JSON-Schema `properties` of its settings, defaults included. `"format": "path"` marks a path (resolved
        against the spec's folder), `"format": "source"` the name of a source of the spec (checked by the core).
    required: the options that have no default.
    typical_ranges: usual ranges of core settings beside this component, e.g. `{"train.learning_rate": (1e-4, 5e-4)}`.
    """

    summary: str
    factory: str
    options: Mapping[str, Any] = field(default_factory=dict)
    required: tuple[str, ...] = ()
    typical_ranges: Mapping[str, tuple[float, float]] = field(default_factory=dict)
