"""The declaration of a plugin's component."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from harness.interfaces.component_example import ComponentExample

COMPONENT_TYPES = (
    *("templates", "sources", "row_formats", "modes", "mitigations", "metrics"),
    *("optimizers", "schedulers", "checks", "trackers", "exporters"),
)

CORE_DISTRIBUTION = "harness-sft"
"""The distribution of harness itself, which has the built-in components."""

SUPPORTED_API = range(1, 2)
"""Versions of the plugin interface that this version of harness supports."""


@dataclass(frozen=True)
class Component:
    """The declaration of one component. A module that declares components imports nothing heavy.

    Attributes:
        summary: One sentence, shown by `harness plugins` and by editors.
        factory: "package.module:factory". It is imported only when a run needs it, and called as `factory(**options)`.
        options: JSON-Schema `properties` of the settings, with defaults. `"format": "path"` marks a path (resolved
            against the spec's folder), `"format": "source"` the name of a source of the spec (checked by the core).
        required: The options without a default.
        typical_ranges: Usual ranges of core settings with this component, e.g.
            `{"train.learning_rate": (1e-4, 5e-4)}`.
        api: Version of the plugin interface that it is written for.
        example: Options and results for `harness plugins --check` and the tests of `harness.testing`.
    """

    summary: str
    factory: str
    options: Mapping[str, Any] = field(default_factory=dict)
    required: tuple[str, ...] = ()
    typical_ranges: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    api: int = 1
    example: ComponentExample = field(default_factory=ComponentExample)
