"""Validate the option `held_out` of the sources where the JSON Schema cannot."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from harness.errors import HarnessError
from harness.spec.spec import Spec
from harness.utils.timestamps import parse_timestamp

BY_SHARE = '{"share": 0.1, "group": "COLUMN"}'
BY_TIME = '{"column": "COLUMN", "from": "2026-01-31"}'


def invalid_held_out_errors(spec: Spec) -> Iterator[HarnessError]:
    """Yield an error for each `held_out` object that is neither by share nor by time."""
    for name, source in spec.document["sources"].items():
        for kind, options in source.items():
            held_out = options["held_out"]
            if isinstance(held_out, Mapping) and (problem := _find_problem(held_out)) is not None:
                yield HarnessError(spec.where(("sources", name, kind, "held_out")), *problem)


def is_split_by_seed(held_out: float | Mapping[str, Any]) -> bool:
    """Return whether the seed decides which rows are held out."""
    return bool(held_out) if not isinstance(held_out, Mapping) else held_out["share"] is not None


def _find_problem(held_out: Mapping[str, Any]) -> tuple[str, str] | None:
    """Return what is wrong with an object and a remedy; None if it is valid."""
    by_share = [key for key in ("share", "group", "near_duplicates") if held_out[key]]
    by_time = [key for key in ("column", "from") if held_out[key] is not None]
    if by_share and by_time:
        return f"{by_share[0]!r} and {by_time[0]!r} do not go together", f"write {BY_SHARE} or {BY_TIME}"
    if not by_time and held_out["share"] is None:
        return "the key 'share' is missing", f"write {BY_SHARE} or {BY_TIME}"
    if len(by_time) == 1:
        missing = "from" if by_time == ["column"] else "column"
        return f"the key {missing!r} is missing", f"write {BY_TIME}"
    if by_time:
        try:
            parse_timestamp(held_out["from"])
        except ValueError:
            return f"{held_out['from']!r} is not a date", "write a date such as 2026-01-31, or a number without quotes"
    return None
