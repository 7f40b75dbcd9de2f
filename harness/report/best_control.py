"""Compare arms with the best of several controls, where which one is best is not known beforehand."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from harness.report.arm_experiment import ArmExperiment
from harness.report.recommendation import ArmPoint, Axes
from harness.report.weight_variants import negated
from harness.statistics.intervals import Estimate
from harness.types import MIN_ITEMS

ControlVerdict = Literal["better", "worse", "no evidence", "too few items"]
BoundedDifference = Callable[[str, str, int], Estimate]


@dataclass(frozen=True)
class BestControl:
    """An arm against the best control.

    Attributes:
        arm: Name of the arm.
        control: The control that forgets least, of those that gain about as much as the control that gains most.
        gain: Gain of the arm minus the largest gain of a control.
        forgotten: Forgetting of the arm minus the smallest forgetting of a control.
        verdict: On `forgotten`: `better` if the arm forgets less than every control.
    """

    arm: str
    control: str
    gain: Estimate
    forgotten: Estimate
    verdict: ControlVerdict


def compare_with_best_control(
    experiment: ArmExperiment, points: Sequence[ArmPoint], controls: Sequence[str], axes: Axes
) -> tuple[BestControl, ...]:
    """Compare every arm except the controls with the best control; intervals hold for all these arms together.

    Controls that gain less than the best of them by more than the margin take no part: a model that does not learn does
    not forget either.

    Args:
        experiment: The finished runs.
        points: Gain and forgetting of the arms that can be compared.
        controls: The control arms.
        axes: The scores and their margins.

    Returns:
        One comparison for each arm; empty if fewer than two controls or no other arm can be compared.
    """
    measured = [point for point in points if not math.isnan(point.forgotten.value)]
    by_arm = {point.arm: point for point in measured if point.arm in controls}
    others = [point.arm for point in measured if point.arm not in controls]
    if len(by_arm) < 2 or not others:
        return ()
    best_gain = max(point.gain.value for point in by_arm.values())
    eligible = [arm for arm, point in by_arm.items() if best_gain - point.gain.value <= axes.gain_margin]
    best = min(eligible, key=lambda arm: by_arm[arm].forgotten.value)

    def forgotten(arm: str, control: str, comparisons: int) -> Estimate:
        return experiment.forgetting_difference(arm, control, axes.forgetting, comparisons)

    def lost_gain(arm: str, control: str, comparisons: int) -> Estimate:
        return negated(experiment.gain_difference(arm, control, axes.gain, comparisons))

    comparisons = []
    for arm in others:
        excess = difference_to_smallest(arm, eligible, forgotten, arms=len(others))
        gain = negated(difference_to_smallest(arm, eligible, lost_gain, arms=len(others)))
        comparisons.append(BestControl(arm, best, gain, excess, _verdict(excess)))
    return tuple(comparisons)


def difference_to_smallest(
    arm: str, controls: Sequence[str], difference: BoundedDifference, *, arms: int = 1
) -> Estimate:
    """Return a value of an arm minus the smallest value of the controls, with an interval that accounts for the choice.

    The difference to the smallest is the largest of the differences to each control. So the largest upper bound is an
    upper bound without any correction (intersection-union test; Berger, 1982, doi:10.1080/00401706.1982.10487790), and
    the largest lower bound is a lower bound after Bonferroni's correction for the number of controls (compare Hsu,
    1984, doi:10.1214/aos/1176346732).

    Args:
        arm: The arm.
        controls: The controls, at least one.
        difference: Returns the arm's value minus a control's, with intervals for that many comparisons together.
        arms: Number of arms for which the interval is to hold together.
    """
    upper = [difference(arm, control, arms) for control in controls]
    lower = [difference(arm, control, arms * len(controls)) for control in controls]
    largest = max(upper, key=lambda gap: gap.value)
    bounds = max(gap.low for gap in lower), max(gap.high for gap in upper)
    if any(math.isnan(gap.low) for gap in (*lower, *upper)):
        bounds = math.nan, math.nan
    return Estimate(largest.value, largest.stderr, *bounds, min(gap.n for gap in upper), largest.method)


def _verdict(excess: Estimate) -> ControlVerdict:
    if excess.units < MIN_ITEMS:
        return "too few items"
    return "better" if excess.high < 0 else "worse" if excess.low > 0 else "no evidence"
