"""The option that names sources."""

from __future__ import annotations

from typing import Any


def source_list_option(description: str) -> dict[str, Any]:
    """Return the JSON Schema of a non-empty list of the spec's sources.

    Args:
        description: one sentence for the user.
    """
    items = {"type": "string", "format": "source"}
    return {"type": "array", "items": items, "minItems": 1, "uniqueItems": True, "description": description}
