"""Intervals and the exact test of proportions: one, and the difference of two over the same items."""

from __future__ import annotations

import math

Z_95 = 1.959963984540054
"""The 97.5 percentile of the normal distribution."""


def wilson(hits: int, n: int, z: float = Z_95) -> tuple[float, float]:
    """Return Wilson's score interval of the proportion hits / n (Wilson, 1927, doi:10.1080/01621459.1927.10502953).

    Args:
        hits: Number of items that are 1.
        n: Number of items, above 0.
        z: Normal quantile of the confidence level (default: 95 %).
    """
    proportion, spread = hits / n, z * z / n
    middle = (proportion + spread / 2) / (1 + spread)
    half = z / (1 + spread) * math.sqrt(proportion * (1 - proportion) / n + spread / (4 * n))
    # Rounding would leave these bounds next to 0 and 1.
    return (0.0 if hits == 0 else middle - half), (1.0 if hits == n else middle + half)


def paired_difference_interval(improved: int, worsened: int, n: int) -> tuple[float, float, float]:
    """Return standard error and 95 % interval of the difference (improved − worsened) / n of paired proportions.

    The interval is the union of two:

    - Bonett and Price's Wald interval with one item added to `improved` and one to `worsened` (2012,
      doi:10.3102/1076998611411915). It has a width even if no item changed: 0 ± 0.0866 for 30 items.
    - the exact conditional interval: Clopper and Pearson's interval of the share of `improved` among the changed items,
      which excludes 0 exactly if McNemar's exact p-value is below 0.05.

    The union therefore excludes 0 only if `mcnemar_p` is below 0.05. The converse holds too (tested for up to 1,000
    changed items), so interval and test always agree.

    Args:
        improved: Number of items that changed from 0 to 1.
        worsened: Number of items that changed from 1 to 0.
        n: Number of items, above 0.

    Returns:
        Standard error (Bonett and Price's), lower and upper bound.
    """
    gained, lost = (improved + 1) / (n + 2), (worsened + 1) / (n + 2)
    stderr = math.sqrt((gained + lost - (gained - lost) ** 2) / (n + 2))
    low, high = gained - lost - Z_95 * stderr, gained - lost + Z_95 * stderr
    changed = improved + worsened
    if changed:
        from scipy.special import betaincinv

        lowest = float(betaincinv(improved, worsened + 1, 0.025)) if improved else 0.0
        highest = float(betaincinv(improved + 1, worsened, 0.975)) if worsened else 1.0
        low, high = min(low, changed / n * (2 * lowest - 1)), max(high, changed / n * (2 * highest - 1))
    return stderr, max(-1.0, low), min(1.0, high)


def mcnemar_p(improved: int, worsened: int) -> float:
    """Return McNemar's exact p-value of "as many items improved as worsened" (doi:10.1007/BF02295996).

    Items that did not change carry no information. If none changed, p is 1.

    Args:
        improved: Number of items that changed from 0 to 1.
        worsened: Number of items that changed from 1 to 0.
    """
    changed = improved + worsened
    if not changed:
        return 1.0
    # Integers throughout: 2 ** -changed underflows for some thousands of changed items.
    term = tail = 1
    for k in range(min(improved, worsened)):
        term = term * (changed - k) // (k + 1)
        tail += term
    p: float = 2 * tail / 2**changed
    return min(1.0, p)
