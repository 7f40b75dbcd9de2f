"""A damaged value of a JSON object is a TypeError that names the field."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from harness.utils.json_dataclass import build_dataclass


@dataclass
class Sample:
    name: str
    count: int = 0
    value: float = 0.0
    flag: bool = False
    note: str | None = None
    rows: tuple[tuple[str, int], ...] = ()
    options: Mapping[str, Mapping[str, int | None]] | None = None
    folder: Path | None = None


@pytest.mark.parametrize(
    "values",
    [
        {"count": 3, "value": 2, "flag": True, "note": "n", "rows": [["a", 1]], "options": {"a": {"b": None}}},
        {"value": None, "note": None, "rows": (), "options": None, "folder": Path("a")},
    ],
)
def test_values_of_the_annotated_types_are_taken(values):
    built = build_dataclass(Sample, {"name": "a", **values})
    assert {name: getattr(built, name) for name in values} == values


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("name", True),
        ("name", None),
        ("name", 3),
        ("name", ["a"]),
        ("count", "3"),
        ("count", True),
        ("count", 1.5),
        ("count", None),
        ("value", "nan"),
        ("value", False),
        ("flag", 1),
        ("flag", None),
        ("note", {}),
        ("rows", "text"),
        ("rows", {"a": 1}),
        ("options", []),
    ],
)
def test_another_type_names_the_field(name, value):
    with pytest.raises(TypeError, match=f"^{name} is {type(value).__name__} and not "):
        build_dataclass(Sample, {"name": "a", name: value})


def test_missing_and_unknown_fields_are_errors_too():
    with pytest.raises(TypeError, match="'name'"):
        build_dataclass(Sample, {})
    with pytest.raises(TypeError, match="'other'"):
        build_dataclass(Sample, {"name": "a", "other": 1})
