"""Round a fraction of a number to a count."""

from __future__ import annotations

import math


def round_up_count(fraction: float, total: int) -> int:
    """Return a fraction of a count, rounded up.

    Errors of floats are ignored: 0.07 · 100 is slightly more than 7, and the result is 7.

    Args:
        fraction: In [0, 1].
        total: The count.
    """
    return math.ceil(round(fraction * total, 6))
