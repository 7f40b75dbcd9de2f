"""The change of one score: base model, last stage, paired difference, and the verdict on the difference."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from statistics import NormalDist
from typing import Literal

from harness.statistics.intervals import Estimate
from harness.types import MIN_ITEMS, Role, Score

Verdict = Literal["better", "worse", "different", "no evidence", "too few items", "unusable"]


@dataclass(frozen=True)
class ScoreChange:
    """One score of one suite: base model, last stage, and the paired difference.

    In a continued run, `before` is the earlier base model. For a suite that the earlier run did not have, it is the
    model that this run started from.

    Attributes:
        suite: Name of the suite.
        role: Role of the suite.
        metric: Name of the metric.
        name: Name of the score.
        signature: Signature of the metric.
        higher_is_better: Direction of the score; None if neither is better.
        n: Number of items.
        before: The score of the base model.
        after: The score after the last stage.
        difference: after − before over the same items, with standard error and 95 % interval (see
            `intervals.paired_test`).
        verdict: `too few items` below 30 items, or groups of items. `no evidence` if the interval includes 0.
            Otherwise `better` or `worse` in the direction of the metric, or `different` if the score has no direction.
            `unusable` if there is a reason not to use the score.
        needed: Number of items (of groups, if the suite has groups) that give a verdict of `better` or `worse` with
            80 % probability, if the change is as large as measured. None if there is such a verdict, or no change.
        after_stages: The score after every stage, the base first; None if a stage did not evaluate the suite.
        margin: Only for the primary score of the suite: the largest loss that does not count as forgetting, above 0.
        since_learned: Only for a suite that an earlier stage taught: the last stage − that stage, over the same items.
        diagnostics: Of the score after the last stage, see `Metric.diagnostics`.
        unusable: Why the score before or after is not used; empty if it is. Such a score has no margin.
    """

    suite: str
    role: Role
    metric: str
    name: str
    signature: str
    higher_is_better: bool | None
    n: int
    before: Estimate
    after: Estimate
    difference: Estimate
    verdict: Verdict
    needed: int | None
    after_stages: tuple[Estimate | None, ...]
    margin: float | None = None
    since_learned: Estimate | None = None
    diagnostics: Mapping[str, float] = field(default_factory=dict)
    unusable: str = ""


def estimate_of_score(score: Score) -> Estimate:
    """Return the score's value and uncertainty."""
    return Estimate(score.value, score.stderr, score.low, score.high, score.n, score.method, score.groups)


def verdict_of_difference(difference: Estimate, higher_is_better: bool | None) -> Verdict:
    """Return the verdict on a difference; see `ScoreChange`."""
    if difference.units < MIN_ITEMS:
        return "too few items"
    if higher_is_better is None:
        return "different" if difference.low > 0.0 or difference.high < 0.0 else "no evidence"
    # A NaN bound must count as an interval that includes 0.
    if difference.low > 0.0:
        return "better" if higher_is_better else "worse"
    if difference.high < 0.0:
        return "worse" if higher_is_better else "better"
    return "no evidence"


def items_needed_for_verdict(difference: Estimate, comparisons: int = 1) -> int | None:
    """Estimate the number of items for a verdict with 80 % probability, if the difference is as large as measured.

    With n items, standard error s and difference d, Student's t needs n s² (z + 0.84)² / d² + z² / 2 items (Guenther,
    1981, doi:10.2307/2683296). McNemar's test needs (z √c + 0.84 √(c − d²))² / d² + 1 / |d| items, where c is the share
    of items that change (Connor, 1987, doi:10.2307/2531961). z is 1.96, the normal quantile of 5 %. Of several
    comparisons each is made at 5 % divided by their number, which is at least as strict as Holm's correction.

    Args:
        difference: The measured difference. If it is over groups, the result is a number of groups.
        comparisons: Number of comparisons.

    Returns:
        The number of items or groups; None if the difference is 0, has no interval, or a single comparison has its
        verdict.
    """
    quantile, power = NormalDist().inv_cdf(1 - 0.025 / comparisons), NormalDist().inv_cdf(0.8)
    has_verdict = difference.units >= MIN_ITEMS and difference.excludes_zero
    value, units = abs(difference.value), difference.units
    if (has_verdict and comparisons == 1) or not value or not math.isfinite(difference.stderr):
        return None
    if difference.method == "paired":
        # The share of changed items, from Bonett and Price's standard error: two items are added there.
        changed = ((units + 2) * difference.stderr) ** 2 + (units * value) ** 2 / (units + 2) - 2
        share = max(changed / units, value)
        deviations = quantile * math.sqrt(share) + power * math.sqrt(max(share - value**2, 0.0))
        needed = (deviations / value) ** 2 + 1 / value
    else:
        deviation = math.sqrt(units) * difference.stderr
        needed = ((quantile + power) * deviation / value) ** 2 + quantile**2 / 2
    return max(MIN_ITEMS, math.ceil(needed))
