"""Build a dataclass from a JSON object that may be damaged or written by another version."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import fields
from functools import cache
from typing import Any, TypeVar

T = TypeVar("T")

_TYPES: dict[str, tuple[type, ...]] = {
    "str": (str,),
    "bool": (bool,),
    "int": (int,),
    "float": (int, float, type(None)),  # JSON has null in place of NaN
    "None": (type(None),),
    "Mapping": (Mapping,),
    "dict": (Mapping,),
    "tuple": (list, tuple),
    "Sequence": (list, tuple),
}
_BRACKETS = re.compile(r"\[[^\[\]]*\]")


def build_dataclass(dataclass_type: type[T], values: Mapping[str, Any]) -> T:
    """Build a dataclass after checking the types of the values, as far as they are types of JSON.

    Args:
        dataclass_type: Its annotations are texts, as `from __future__ import annotations` makes them.
        values: Field -> value. A list may be in place of a tuple, and null in place of a float, which is NaN. The
            elements of lists and objects are not checked.

    Raises:
        TypeError: A field is missing, unknown or of another type.
    """
    for name, (annotation, types) in _checked_fields(dataclass_type).items():  # type: ignore[arg-type]
        if name not in values:
            continue
        value = values[name]
        if not isinstance(value, types) or (isinstance(value, bool) and bool not in types):  # a bool is an int, too
            raise TypeError(f"{name} is {type(value).__name__} and not {annotation}")
    return dataclass_type(**values)


@cache
def _checked_fields(dataclass_type: type) -> dict[str, tuple[str, tuple[type, ...]]]:
    """Return field -> annotation and types, of the fields that are annotated with types of JSON alone."""
    checked = {}
    for field in fields(dataclass_type):
        names = str(field.type)
        while _BRACKETS.search(names):
            names = _BRACKETS.sub("", names)  # tuple[str, ...] | None becomes tuple | None
        types = [_TYPES.get(name.strip()) for name in names.split("|")]
        if None not in types:
            checked[field.name] = (str(field.type), sum(filter(None, types), ()))
    return checked
