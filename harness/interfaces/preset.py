"""The declaration of a preset: suites that a spec uses by one name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class PresetSuite:
    """One suite of a preset, as a spec writes it.

    Attributes:
        source: The source of its rows: type -> options, e.g. `{"jsonl": {"path": "pkg://package/rows.jsonl"}}`.
        settings: The keys of the suite, without `source`.
    """

    source: Mapping[str, Any]
    settings: Mapping[str, Any]


@dataclass(frozen=True)
class Preset:
    """Suites that a spec uses as `"evaluate": {"NAME": "PRESET"}`. The suites are then called `NAME-KIND`.

    Attributes:
        summary: One sentence, shown by editors.
        suites: Kind -> suite, in the order in which they are measured.
    """

    summary: str
    suites: Mapping[str, PresetSuite]
