"""Copy dataclass instances with other values, also frozen ones and those with cached attributes."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any


def attributes_of(instance: Any) -> dict[str, Any]:
    """Return the fields of a dataclass instance, and what else its `__dict__` holds, e.g. cached properties."""
    fields = {field.name: getattr(instance, field.name) for field in dataclasses.fields(instance)}
    return {**fields, **getattr(instance, "__dict__", {})}


def with_attributes(instance: Any, attributes: Mapping[str, Any]) -> Any:
    """Return a copy of a dataclass instance with these attributes; the instance itself if none of them differs.

    Args:
        instance: The instance. Its `__post_init__` is not called again.
        attributes: Some or all of its attributes.
    """
    current = attributes_of(instance)
    if all(value is current[name] for name, value in attributes.items()):
        return instance
    copy = object.__new__(type(instance))
    for name, value in {**current, **attributes}.items():
        object.__setattr__(copy, name, value)
    return copy
