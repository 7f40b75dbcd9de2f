"""Read points in time that data and specs write as ISO 8601 text or as numbers."""

from __future__ import annotations

import math
from datetime import UTC, datetime


def parse_timestamp(value: object) -> float:
    """Return the seconds since 1970 of an ISO 8601 date or time; a number is returned as it is.

    A time without an offset is in UTC. A date is its first moment.

    Args:
        value: E.g. `2026-01-31`, `2026-01-31T08:30:00+01:00`, or a finite number.

    Raises:
        ValueError: The value is neither.
    """
    if isinstance(value, bool):
        raise ValueError(f"{value!r} is not a date")
    if isinstance(value, (int, float)):
        if not math.isfinite(value):
            raise ValueError(f"{value!r} is not finite")
        return float(value)
    moment = datetime.fromisoformat(str(value).strip())
    return (moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)).timestamp()
