"""The difference of a paired test, for tests that need no p-value."""

from __future__ import annotations

from typing import Any

from harness.statistics.intervals import Estimate, paired_test


def difference(*arguments: Any, **options: Any) -> Estimate:
    """Return the difference of `paired_test`."""
    return paired_test(*arguments, **options).difference
