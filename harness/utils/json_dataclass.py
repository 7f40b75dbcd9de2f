"""Build a dataclass from a JSON object that may be damaged or written by another version."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any, TypeVar

T = TypeVar("T")

_NUMBERS = (int, float, type(None))  # JSON has null in place of NaN
_TYPES: dict[str, Any] = {
    "str": str,
    "bool": bool,
    "int": int,
    "float": _NUMBERS,
    "None": type(None),
    "Mapping": Mapping,
    "dict": Mapping,
    "tuple": Sequence,
    "Sequence": Sequence,
}
_BRACKETS = re.compile(r"\[[^\[\]]*\]")


def build_dataclass(dataclass_type: type[T], values: Mapping[str, Any]) -> T:
    """Build a dataclass after checking the types of the values, as far as they are types of JSON.

    Args:
        dataclass_type: Its annotations are texts, as `from __future__ import annotations` makes them.
        values: Field -> value. A list may be in place of a tuple, and null in place of a number. The elements of lists
            and objects are not checked.

    Raises:
        TypeError: A field is missing, unknown or of another type.
    """
    annotations = {field.name: str(field.type) for field in fields(dataclass_type)}  # type: ignore[arg-type]
    for name, value in values.items():
        if name in annotations and not _matches(annotations[name], value):
            raise TypeError(f"{name} is {type(value).__name__} and not {annotations[name]}")
    return dataclass_type(**values)


def _matches(annotation: str, value: Any) -> bool:
    """Return whether a value is of one of the annotated types; True if one of them is not known here."""
    while _BRACKETS.search(annotation):
        annotation = _BRACKETS.sub("", annotation)
    names = [name.strip() for name in annotation.split("|")]
    if any(name not in _TYPES for name in names):
        return True
    if isinstance(value, bool):
        return "bool" in names
    if isinstance(value, str):
        return "str" in names
    return any(isinstance(value, _TYPES[name]) for name in names)
