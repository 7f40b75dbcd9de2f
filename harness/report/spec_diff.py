"""Find the keys in which the specs of several runs differ, and whether it is a single number (a sweep)."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

IGNORED_KEYS = ("name", "description", "output", "track", "arms", "$schema")
"""Keys that do not influence the model."""

STAGE_KEY_PREFIX = re.compile(r"mode\.\w+\.stages\.\d+\.")
"""Prefix of the keys of a stage; the rest is a key of the spec."""


@dataclass(frozen=True)
class SweptParameter:
    """The only number in which runs differ.

    Attributes:
        key: Dotted key of the number in the spec.
        values: Run -> its value.
        is_share: Whether the number is a fraction, 0 to 1.
    """

    key: str
    values: Mapping[str, float]
    is_share: bool

    def format_value(self, value: float) -> str:
        """Return the value for display: a fraction in percent."""
        return f"{100 * value:g} %" if self.is_share else f"{value:g}"


def spec_differences(specs: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return dotted key -> run -> value, of the keys that are not the same in all; runs without a key are missing."""
    flat_specs = {name: dict(_flatten(spec)) for name, spec in specs.items() if spec}
    parent_keys = {
        key[:end]
        for flat_spec in flat_specs.values()
        for key in flat_spec
        for end, sign in enumerate(key)
        if sign == "."
    }
    differences: dict[str, dict[str, Any]] = {}
    for key in dict.fromkeys(key for flat_spec in flat_specs.values() for key in flat_spec):
        if key.split(".", 1)[0] in IGNORED_KEYS:
            continue
        values = {name: flat_spec[key] for name, flat_spec in flat_specs.items() if key in flat_spec}
        if key in parent_keys and all(value == {} for value in values.values()):
            continue  # other runs have keys below it, which are compared one by one
        if len(values) < len(flat_specs) or not _all_equal(values.values()):
            differences[key] = values
    return differences


def find_swept_parameter(specs: Mapping[str, Mapping[str, Any]]) -> SweptParameter | None:
    """Return the only number in which runs differ, apart from seeds.

    A run without the component that has the number (e.g. mixing) counts as a fraction of 0 if the number is a
    fraction; otherwise it has no value. A run without any other component is a difference of its own.

    Returns:
        The parameter; None if the runs differ in several keys, or in a value that is not a number.
    """
    differences = {key: values for key, values in spec_differences(specs).items() if key != "seed"}
    changing_keys = [key for key, values in differences.items() if not _all_equal(values.values())]
    if len(changing_keys) != 1:
        return None
    (key,) = changing_keys
    if any(component_of_key(other) != component_of_key(key) for other in differences):
        return None
    if not all(isinstance(value, int | float) and not isinstance(value, bool) for value in differences[key].values()):
        return None
    values = {name: float(value) for name, value in differences[key].items()}
    is_share = key.rpartition(".")[2] == "share" and all(0 <= value <= 1 for value in values.values())
    if is_share:
        values = {name: values.get(name, 0.0) for name, spec in specs.items() if spec}
    return SweptParameter(key, values, is_share) if len(set(values.values())) > 1 else None


def component_of_key(key: str) -> str:
    """Return the component that a key belongs to, e.g. `mitigations.ewc` for `mitigations.ewc.strength`."""
    stage = STAGE_KEY_PREFIX.match(key)
    start = stage.end() if stage else 0
    return key[:start] + ".".join(key[start:].split(".")[:2])


def _all_equal(values: Iterable[Any]) -> bool:
    return len({json.dumps(value, sort_keys=True) for value in values}) <= 1


def _flatten(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping) and (value or not path):
        for key, entry in value.items():
            yield from _flatten(entry, f"{path}.{key}" if path else str(key))
    elif isinstance(value, list | tuple) and value and all(isinstance(entry, Mapping) for entry in value):
        for index, entry in enumerate(value):
            yield from _flatten(entry, f"{path}.{index}")
    else:
        yield path, value
