"""Error rates of what is decided about arms, by simulation: the gate, "enough", "about as much", the best control."""

from __future__ import annotations

import numpy as np
import pytest

from harness import gate
from harness.gate import ScoreForGate
from harness.report.best_control import difference_to_smallest
from harness.report.recommendation import ArmPoint, Axes, recommend
from harness.report.spec_diff import SweptParameter
from harness.statistics.intervals import Estimate
from harness.statistics.seeds import Linearized, combine, pool_over_seeds, widen

TRIALS = 1000
NOMINAL = 0.025
TOLERANCE = 0.015
"""Three standard errors of a simulated rate of 2.5 %."""

LOSES_AT_MOST = {
    **dict.fromkeys(gate.TESTS),
    "score": "a/b",
    "summary": None,
    "judge_by": "bound",
    "tier": "blocks",
    "loses_at_most": 0.1,
}


def linearized(values: np.ndarray) -> Linearized:
    errors = (values - values.mean()) / len(values)
    return Linearized(float(values.mean()), dict(enumerate(errors.tolist())), len(values))


def estimate(values: np.ndarray) -> Estimate:
    return pool_over_seeds([linearized(values)]).estimate


def passes(change: Estimate) -> bool:
    (result,) = gate.evaluate_gate([LOSES_AT_MOST], {"a/b": ScoreForGate(change, change, True)})
    return result.passed


@pytest.mark.parametrize("n", [3, 29, 30, 70])
def test_gate_passes_a_loss_at_its_limit_in_at_most_2_5_percent(n) -> None:
    generator = np.random.default_rng(n)
    rate = np.mean([passes(estimate(generator.normal(-0.1, 0.3, n))) for _ in range(TRIALS)])
    assert rate <= (NOMINAL + TOLERANCE if n >= 30 else 0)
    certain = np.mean([passes(estimate(generator.normal(0.3, 0.3, n))) for _ in range(100)])
    assert certain == (1 if n >= 30 else 0)


@pytest.mark.slow
@pytest.mark.parametrize("n", [30, 70])
def test_best_of_seven_arms_passes_the_gate_in_at_most_2_5_percent(n) -> None:
    """Every arm loses exactly the limit; the one that looks best is judged."""
    generator = np.random.default_rng(n)
    alone = corrected = 0
    for _ in range(TRIALS):
        shared = generator.normal(0, 0.15, n)
        changes = [estimate(shared + generator.normal(-0.1, 0.25, n)) for _ in range(7)]
        chosen = max(changes, key=lambda change: change.value)
        alone += passes(chosen)
        corrected += passes(widen(chosen, 7))
    assert alone / TRIALS > 3 * NOMINAL, "without the correction, the choice makes it pass too often"
    assert corrected / TRIALS <= NOMINAL + TOLERANCE


def test_best_of_seven_arms_with_three_seeds_passes_in_at_most_2_5_percent() -> None:
    generator = np.random.default_rng(7)
    count = 0
    for _ in range(300):
        items = generator.normal(-0.1, 0.2, 40)
        pooled = []
        for _ in range(7):
            seeds = [linearized(items + generator.normal(0, 0.1) + generator.normal(0, 0.2, 40)) for _ in range(3)]
            pooled.append(pool_over_seeds(seeds, comparisons=7).estimate)
        count += passes(max(pooled, key=lambda change: change.value))
    assert count / 300 <= NOMINAL + 0.027, "three standard errors of 300 trials"


def decide(forgotten: list[np.ndarray], gains: list[np.ndarray], margins: tuple[float, float]):
    """Recommend among arms 0, 1, …, whose swept value is their number."""
    names = [str(number) for number in range(len(forgotten))]
    by_arm = {
        quantity: dict(zip(names, map(linearized, values), strict=True))
        for quantity, values in (("gain", gains), ("forgotten", forgotten))
    }

    def difference(quantity: str):
        def paired(arm: str, other: str) -> Estimate:
            values = by_arm[quantity]
            return pool_over_seeds([combine([(1.0, values[arm]), (-1.0, values[other])])]).estimate

        return paired

    points = [
        ArmPoint(name, estimate(gain), estimate(loss), None, True)
        for name, gain, loss in zip(names, gains, forgotten, strict=True)
    ]
    return recommend(
        points,
        Axes("a/gain", "b/loss", *margins),
        gain_difference=difference("gain"),
        forgetting_difference=difference("forgotten"),
        swept_parameter=SweptParameter("share", {name: float(name) for name in names}, is_share=False),
    )


@pytest.mark.slow
@pytest.mark.parametrize("n", [30, 70])
def test_value_that_forgets_a_margin_more_is_called_enough_in_at_most_2_5_percent(n) -> None:
    """Value 0 forgets exactly the margin of 0.05 more than 1 and 2. An interval that includes 0 shows nothing."""
    generator = np.random.default_rng(n)
    enough = 0
    for _ in range(TRIALS):
        items = generator.normal(0.3, 0.3, n)
        losses = [items + generator.normal(extra, 0.1, n) for extra in (0.05, 0.0, 0.0)]
        gains = [1 + items] * 3
        enough += decide(losses, gains, (0.05, 0.05)).value == 0.0
    assert enough / TRIALS <= NOMINAL + TOLERANCE


def test_arm_that_gains_a_margin_less_is_a_choice_in_at_most_2_5_percent() -> None:
    """Arm 0 forgets nothing and gains less by exactly the margin."""
    generator = np.random.default_rng(5)
    chosen = 0
    for _ in range(TRIALS):
        items = generator.normal(1, 0.5, 40)
        gains = [items - 0.1 + generator.normal(0, 0.2, 40), items + generator.normal(0, 0.2, 40)]
        losses = [generator.normal(0, 0.1, 40), generator.normal(1, 0.1, 40)]
        chosen += decide(losses, gains, (0.1, 0.1)).arm == "0"
    assert chosen / TRIALS <= NOMINAL + TOLERANCE


@pytest.mark.slow
@pytest.mark.parametrize("controls", [(0.0, 0.0, 0.0), (0.0, 0.1, 0.5)])
def test_interval_to_the_best_control_covers_the_truth(controls) -> None:
    """The truth is the difference to the control that forgets least, which has to be found from the same items."""
    generator = np.random.default_rng(round(10 * sum(controls)))
    covered = better = worse = 0
    for _ in range(TRIALS):
        items = generator.normal(0, 0.3, 50)
        values = {
            name: linearized(items + generator.normal(level, 0.2, 50))
            for name, level in zip(("arm", "x", "y", "z"), (0.0, *controls), strict=True)
        }

        def difference(arm: str, control: str, comparisons: int, values=values) -> Estimate:
            gap = combine([(1.0, values[arm]), (-1.0, values[control])])
            return pool_over_seeds([gap], comparisons=comparisons).estimate

        gap = difference_to_smallest("arm", ["x", "y", "z"], difference)
        covered += gap.low <= 0 <= gap.high
        better += gap.high < 0
        worse += gap.low > 0
    assert covered / TRIALS >= 0.95 - TOLERANCE
    assert better / TRIALS <= NOMINAL + TOLERANCE
    assert worse / TRIALS <= NOMINAL + TOLERANCE
