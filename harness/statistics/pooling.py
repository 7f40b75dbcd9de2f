"""The mean of independent estimates, with its interval."""

from __future__ import annotations

import math
from collections.abc import Sequence

from harness.statistics.intervals import Estimate


def scale_estimate(estimate: Estimate, factor: float) -> Estimate:
    """Multiply an estimate and its interval by a number, which may be negative."""
    bounds = sorted((estimate.low * factor, estimate.high * factor))
    return Estimate(
        estimate.value * factor, estimate.stderr * abs(factor), bounds[0], bounds[1], estimate.n, estimate.method
    )


def pool_independent(estimates: Sequence[Estimate]) -> Estimate:
    """Return the unweighted mean of estimates over different items.

    The standard error is the root of the summed squared standard errors, divided by their number. The interval is
    Student's t with the degrees of freedom of Welch (1947, doi:10.1093/biomet/34.1-2.28) and Satterthwaite. A single
    estimate is returned as it is, with its own interval.

    Args:
        estimates: At least one; their items must be disjoint.

    Returns:
        The mean; `n` is the number of all items. Bounds are NaN where a standard error is.
    """
    if len(estimates) == 1:
        return estimates[0]
    from scipy.special import stdtrit

    value = math.fsum(estimate.value for estimate in estimates) / len(estimates)
    variances = [estimate.stderr**2 for estimate in estimates]
    total_variance = math.fsum(variances)
    stderr = math.sqrt(total_variance) / len(estimates)
    n = sum(estimate.n for estimate in estimates)
    denominator = math.fsum(
        variance**2 / (estimate.n - 1) for variance, estimate in zip(variances, estimates, strict=True) if variance
    )
    half = float(stdtrit(total_variance**2 / denominator, 0.975)) * stderr if denominator else stderr
    return Estimate(value, stderr, value - half, value + half, n, "t")
