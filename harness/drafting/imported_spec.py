"""What becomes of the configuration of another trainer."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass
class ImportedSpec:
    """A spec, and what became of each key.

    Attributes:
        folder: The folder of the spec, to which its paths are relative.
        document: The spec.
        carried: (key, key of the spec): the meaning is the same.
        changed: (key, how the meaning differs).
        unneeded: (key, why a spec needs nothing for it): the result does not depend on it.
        dropped: (key, why a spec cannot express it).
    """

    folder: Path
    document: dict[str, Any] = field(default_factory=dict)
    carried: list[tuple[str, str]] = field(default_factory=list)
    changed: list[tuple[str, str]] = field(default_factory=list)
    unneeded: list[tuple[str, str]] = field(default_factory=list)
    dropped: list[tuple[str, str]] = field(default_factory=list)
