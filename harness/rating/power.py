"""What a number of rated items can show, in words."""

from __future__ import annotations

import math
from collections.abc import Sequence

from harness.statistics.intervals import Estimate
from harness.statistics.proportions import mcnemar_p

POWER = 0.8
LEVEL = 0.05


def smallest_significant_majority(items: int) -> int | None:
    """Return how many of the items must agree for p < 0.05 in the exact sign test; None if even all are not enough."""
    return next((wins for wins in range(items // 2 + 1, items + 1) if mcnemar_p(wins, items - wins) < LEVEL), None)


def power_of_comparison(wins: int, losses: int) -> str:
    """Return what the items with a preference can show."""
    items = wins + losses
    majority = smallest_significant_majority(items)
    if majority is None:
        return f"{items} items with a preference cannot show a difference, even if all agree: at least 6 are needed."
    text = (
        f"Of {items} items with a preference, {majority} ({majority / items:.0%}) must prefer one model for p < 0.05."
    )
    from scipy.special import bdtrc

    shares = (percent / 100 for percent in range(51, 101))
    detected = next((share for share in shares if float(bdtrc(majority - 1, items, share)) >= POWER), None)
    if detected is None or detected == 1.0:
        return f"{text} Only a model that is nearly always preferred is found with 80 % probability."
    return f"{text} A model that is preferred in {detected:.0%} of all cases is found with 80 % probability."


def power_of_means(means: Sequence[Estimate]) -> str:
    """Return how exactly means are known, and which differences between two models they could show."""
    halves = [(mean.high - mean.low) / 2 for mean in means if math.isfinite(mean.low) and math.isfinite(mean.high)]
    if not halves:
        return "The ratings are too few, or all equal, so it is not known how exact the means are."
    items, half = min(mean.n for mean in means), max(halves)
    return (
        f"With {items} items a mean is known to ±{half:.2g}. A second model that is rated separately must differ by "
        f"about {math.sqrt(2) * half:.2g} levels; rating two models side by side shows smaller differences."
    )
