"""What a key of another trainer is in a spec, and how its values are converted."""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

OFF = object()
"""What a converter returns for a value that is off: the key of the spec stays as a sibling or the default has it."""


class NotConvertible(Exception):
    """A value that a spec cannot express. The message says why."""


@dataclass(frozen=True)
class Changed:
    """What a converter returns for a value whose meaning differs.

    Attributes:
        value: The value of the spec.
        change: How the meaning differs.
    """

    value: Any
    change: str


@dataclass(frozen=True)
class Key:
    """What a key of another trainer is in a spec.

    Attributes:
        path: The key of the spec, with dots; "": none.
        convert: Returns the value of the spec, or `OFF`; raises `NotConvertible`.
        change: How the meaning differs; "": it does not.
        why: Why a spec cannot express the key; "": it can.
        unneeded: Why a spec needs nothing for the key, which does not change the result; "": it does.
    """

    path: str = ""
    convert: Callable[[Any], Any] = lambda value: value
    change: str = ""
    why: str = ""
    unneeded: str = ""


def missing(why: str) -> Key:
    """Return the entry of a key that a spec cannot express, unless it is off."""
    return Key(why=why)


def unneeded(reason: str) -> Key:
    """Return the entry of a key that does not change the result, with the reason."""
    return Key(unneeded=reason)


def differs(change: str) -> Key:
    """Return the entry of a key without a counterpart, whose meaning the spec has in another way."""
    return Key(change=change)


def is_off(value: Any) -> bool:
    """Return whether a value switches its key off."""
    return value in (None, False, "", [], {}) or str(value).lower() == "none"


def to_number(value: Any) -> float:
    """Return a number, also one that YAML 1.1 reads as text, such as 1e-4."""
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise NotConvertible(f"{value!r} is not a number")
    return number


def to_int(value: Any) -> int:
    """Return an integer."""
    number = to_number(value)
    if number != int(number):
        raise NotConvertible(f"{value!r} is not an integer")
    return int(number)


def to_count(value: Any) -> int:
    """Return a positive integer."""
    count = to_int(value)
    if count < 1:
        raise NotConvertible(f"{value!r} is not a number of rows")
    return count


def to_texts(value: Any) -> list[str]:
    """Return a list of texts."""
    if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
        raise NotConvertible(f"{value!r} is not a list of texts")
    return value


def switch(result: Any) -> Callable[[Any], Any]:
    """Return a converter of a key that is on or off: on gives `result`, off leaves the key of the spec alone."""
    return lambda value: result if value else OFF


def choice(values: Mapping[str, Any]) -> Callable[[Any], Any]:
    """Return a converter of the values that the mapping has, in lower case."""

    def convert(value: Any) -> Any:
        name = str(value).lower()
        if name not in values:
            raise NotConvertible(f"there is nothing like {value!r}")
        return values[name]

    return convert


def when(expected: Any, result: Any, why: str) -> Callable[[Any], Any]:
    """Return a converter that accepts one value."""

    def convert(value: Any) -> Any:
        if value != expected:
            raise NotConvertible(why)
        return result

    return convert


def to_layers(value: Any) -> Any:
    """Return the target layers of an adapter; a text with special characters is a regular expression."""
    if isinstance(value, str) and re.search(r"[\\()\[\]|*+?^$]", value):
        return f"re:{value}"
    if isinstance(value, str):
        value = [part.strip() for part in value.split(",") if part.strip()]
    names = to_texts(value or [])
    return "all-linear" if names in (["all"], ["all-linear"]) else names


def to_steps(value: Any) -> int | None:
    """Return a number of steps; -1 and 0 mean none."""
    steps = to_number(value)
    if 0 < steps < 1:
        raise NotConvertible(f"{value!r} is a share of the training, and steps are a number here")
    return int(steps) if steps > 0 else None


def to_share(value: Any) -> float:
    """Return a share of rows."""
    share = to_number(value)
    if share < 0:
        raise NotConvertible(f"{value!r} is not a share of rows")
    if share >= 1:
        raise NotConvertible(f"{value!r} is a number of rows, and held_out is a share")
    return share


def to_warmup(value: Any) -> Any:
    """Return a number of steps, or a share of them below 1; 0 leaves it to `warmup_ratio`."""
    steps = to_number(value)
    return OFF if steps <= 0 else steps if steps < 1 else int(steps)


def to_epochs(value: Any) -> Any:
    """Return the epochs between two events that happen so many times an epoch; 0 is off."""
    times = to_number(value)
    if times < 0:
        raise NotConvertible(f"{value!r} is not a number of times an epoch")
    return 1 / times if times else OFF


def each_epoch(value: Any) -> Any:
    """Return 1 for the strategy `epoch`; the others are set by a number of steps."""
    return 1.0 if value == "epoch" else OFF


def to_bfloat16(value: Any) -> Any:
    """Return the precision of `bf16`: on, off or auto."""
    return "auto" if value == "auto" else "bfloat16" if value else OFF


def component(values: Mapping[str, str | dict[str, Any]]) -> Callable[[Any], Any]:
    """Return a converter to a component: its name, or name -> options where they differ from their defaults."""
    convert = choice(values)

    def to_component(value: Any) -> Any:
        found = convert(value)
        return {found: {}} if isinstance(found, str) else copy.deepcopy(found)

    return to_component


def to_quantization(parts: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the options of `model.quantization.bitsandbytes`; None if the model is not quantized.

    Args:
        parts: The values of the names in `QUANTIZATION`.
    """
    bits = 4 if parts.get("4bit") else 8 if parts.get("8bit") else parts.get("bits")
    if not bits:
        if parts.get("experts"):
            raise NotConvertible("nothing is quantized")
        return None
    method = str(parts.get("method") or "bnb").lower()
    if method not in ("bnb", "bitsandbytes"):
        raise NotConvertible(f"weights are quantized with bitsandbytes, not with {method!r}")
    bits = to_int(bits)
    if bits not in (4, 8):
        raise NotConvertible(f"bitsandbytes has 4 and 8 bits, not {bits}")
    experts = {"experts": True} if parts.get("experts") else {}
    if bits == 8:
        return {"bits": 8, **experts}
    number_format = choice({"nf4": "nf4", "fp4": "fp4"})(parts.get("type") or "nf4")
    return {"bits": 4, "type": number_format, "double": bool(parts["double"]), **experts}
