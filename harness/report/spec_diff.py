"""In what the filled specs of several runs differ, and whether it is one number, that a curve can be drawn over.

Knows specs as plain data.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

IGNORED_KEYS = ("name", "description", "output", "track", "arms", "$schema")
"""Keys that say nothing of how a model came to be."""

STAGE_KEY_PREFIX = re.compile(r"mode\.\w+\.stages\.\d+\.")
"""What the keys of a stage begin with; the rest of them are keys of a spec."""


@dataclass(frozen=True)
class SweptParameter:
    """The one number in which runs differ. values: run -> its value. is_share: whether it is one of the whole, 0 to
    1."""

    key: str
    values: Mapping[str, float]
    is_share: bool

    def format_value(self, value: float) -> str:
        """A value as people write it: a share in per cent."""
        return f"{100 * value:g} %" if self.is_share else f"{value:g}"


def spec_differences(specs: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Dotted key -> run -> value, of the keys that are not the same in all; a run without the key is not in it."""
    flat = {name: dict(_flatten(spec)) for name, spec in specs.items() if spec}
    filled = {key[:end] for one in flat.values() for key in one for end, sign in enumerate(key) if sign == "."}
    found: dict[str, dict[str, Any]] = {}
    for key in dict.fromkeys(key for one in flat.values() for key in one):
        if key.split(".", 1)[0] in IGNORED_KEYS:
            continue
        values = {name: one[key] for name, one in flat.items() if key in one}
        if key in filled and all(one == {} for one in values.values()):
            continue  # what the others hold in it is told key by key
        if len(values) < len(flat) or len(set(map(_canonical_json, values.values()))) > 1:
            found[key] = values
    return found


def find_swept_parameter(specs: Mapping[str, Mapping[str, Any]]) -> SweptParameter | None:
    """The one number in which runs differ, seeds aside; None where they differ in more, or in what is no number.

    A run without the component whose number it is (mixing, say) is no difference of its own: it stands at a share of 0,
    and where the number is no share, it has no place on the curve. A run without any other component is one.
    """
    found = {key: values for key, values in spec_differences(specs).items() if key != "seed"}
    changing = [key for key, values in found.items() if len(set(map(_canonical_json, values.values()))) > 1]
    if len(changing) != 1:
        return None
    (key,) = changing
    values = found[key]
    if any(component_of_key(other) != component_of_key(key) for other in found):
        return None
    if not all(isinstance(one, int | float) and not isinstance(one, bool) for one in values.values()):
        return None
    share = key.rpartition(".")[2] == "share" and all(0 <= one <= 1 for one in values.values())
    known = {name: float(one) for name, one in values.items()}
    if share:
        known = {name: known.get(name, 0.0) for name, spec in specs.items() if spec}
    return SweptParameter(key, known, share) if len(set(known.values())) > 1 else None


def component_of_key(key: str) -> str:
    """What a key is a setting of, in a stage too: `mitigations.ewc` of `mitigations.ewc.strength`."""
    stage = STAGE_KEY_PREFIX.match(key)
    start = stage.end() if stage else 0
    return key[:start] + ".".join(key[start:].split(".")[:2])


def _canonical_json(value: Any) -> str:
    return json.dumps(value, sort_keys=True)


def _flatten(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping) and (value or not path):
        for key, one in value.items():
            yield from _flatten(one, f"{path}.{key}" if path else str(key))
    elif isinstance(value, list | tuple) and value and all(isinstance(one, Mapping) for one in value):
        for index, one in enumerate(value):
            yield from _flatten(one, f"{path}.{index}")
    else:
        yield path, value
