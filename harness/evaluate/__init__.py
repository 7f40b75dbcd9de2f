"""Model and held-out rows → what the model did with each, and the scores drawn from that.

Knows models, suites and metrics by their contracts. Does not know training, tracking or how scores are shown.
`evaluate` needs torch; `score`, `read_items` and `require` do not: what was generated once is scored again at once.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from harness.evaluate.items import Stored, item_path, read_items
    from harness.evaluate.limits import require
    from harness.evaluate.scores import score
    from harness.evaluate.subject import Base
    from harness.evaluate.suites import evaluate

__all__ = ["Base", "Stored", "evaluate", "item_path", "read_items", "require", "score"]

_HOMES = {
    "Base": "subject",
    "Stored": "items",
    "evaluate": "suites",
    "item_path": "items",
    "read_items": "items",
    "require": "limits",
    "score": "scores",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
