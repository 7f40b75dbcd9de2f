"""Recommendations from the points of an experiment."""

from __future__ import annotations

import math

import pytest

from harness.report import recommendation
from harness.report.recommendation import ArmPoint
from harness.report.spec_diff import SweptParameter
from harness.statistics.intervals import Estimate


def test_recommendation_requires_gain_and_lists_arms_that_do_not_differ() -> None:
    def estimate(value: float, half: float) -> Estimate:
        return Estimate(value, half / 2, value - half, value + half, 50)

    points = [
        ArmPoint("naive", estimate(0.30, 0.05), estimate(0.50, 0.1), None, True),
        ArmPoint("small", estimate(0.29, 0.05), estimate(0.10, 0.1), 0.8, True),
        ArmPoint("large", estimate(0.28, 0.05), estimate(0.05, 0.1), 0.9, True),
        ArmPoint("frozen", estimate(0.00, 0.01), estimate(0.00, 0.01), 1.0, True),
    ]
    advice = recommendation.recommend(points, "a/b", "c/d").full_text
    assert "'large' forgets least" in advice
    assert "no evidence of forgetting" in advice
    assert "small is not significantly different" in advice
    assert "frozen" not in advice
    assert "none can be recommended" in recommendation.recommend(points[3:], "a/b", "c/d").full_text


def test_few_items_or_nan_give_no_recommendation() -> None:
    gain, nothing = Estimate(0.3, 0.02, 0.26, 0.34, 50), Estimate(math.nan, math.nan, math.nan, math.nan, 50)
    few = Estimate(0.3, 0.02, 0.26, 0.34, 29)
    text = recommendation.recommend([ArmPoint("a", few, few, None, True)], "a/b", "c/d").full_text
    assert text == "a/b has fewer than 30 items: too few to recommend an arm"
    text = recommendation.recommend(
        [ArmPoint("a", gain, nothing, None, True), ArmPoint("b", gain, gain, None, True)], "a/b", "c/d"
    ).full_text
    assert "'b' forgets least" in text
    assert (
        "none can be recommended"
        in recommendation.recommend([ArmPoint("a", gain, nothing, None, True)], "a/b", "c/d").full_text
    )
    assert (
        "over n = 29, too few items for a verdict"
        in recommendation.recommend([ArmPoint("a", gain, few, None, True)], "a/b", "c/d").full_text
    )


def swept_points(**losses: tuple[float, float]) -> list[ArmPoint]:
    """Return arms with the same gain; name -> (forgetting, half its interval)."""
    gain = Estimate(0.3, 0.02, 0.26, 0.34, 50)
    return [
        ArmPoint(arm, gain, Estimate(loss, half / 1.96, loss - half, loss + half, 50), None, True)
        for arm, (loss, half) in losses.items()
    ]


SHARES = SweptParameter(
    "mitigations.mixing.share", {"a": 0.0, "b": 0.01, "c": 0.05, "d": 0.1, "e": 0.25}, is_share=True
)


def test_smallest_value_not_significantly_worse_is_named() -> None:
    points = swept_points(a=(0.5, 0.05), b=(0.4, 0.05), c=(0.12, 0.05), d=(0.08, 0.05), e=(0.1, 0.05))
    text = recommendation.recommend(points, "desk/nll", "chat/nll", SHARES).full_text
    assert "Smallest value not significantly worse than the best in chat/nll: " in text
    assert "mitigations.mixing.share of 5 % (forgets 0.0400 [−0.0307, +0.111] more than 10 %)" in text
    assert text.endswith("Based on one training run per value; the intervals cover the items only")


def test_paired_differences_distinguish_more_values() -> None:
    points = swept_points(a=(0.5, 0.05), b=(0.4, 0.05), c=(0.12, 0.05), d=(0.08, 0.05), e=(0.1, 0.05))

    def paired(point: ArmPoint, other: ArmPoint) -> Estimate:
        gap = point.forgotten.value - other.forgotten.value
        return Estimate(gap, 0.005, gap - 0.01, gap + 0.01, 50)

    text = recommendation.recommend(points, "desk/nll", "chat/nll", SHARES, forgetting_difference=paired).full_text
    assert "share of 10 % forgets least in chat/nll; every smaller value with close to the best gain forgets" in text


def test_zero_may_be_sufficient_and_a_value_needs_all_its_seeds() -> None:
    points = swept_points(a=(0.1, 0.05), b=(0.2, 0.05))
    assert (
        "share of 0 % forgets least in chat/nll; it is the smallest value"
        in recommendation.recommend(points, "desk/nll", "chat/nll", SHARES).full_text
    )
    idle = ArmPoint("a", Estimate(0.01, 0.01, -0.01, 0.03, 50), Estimate(0.9, 0.01, 0.88, 0.92, 50), None, True)
    text = recommendation.recommend(
        [idle, *swept_points(b=(0.1, 0.05), c=(0.5, 0.05))], "desk/nll", "chat/nll", SHARES
    ).full_text
    assert "share of 1 % forgets least in chat/nll; no smaller value is close to the best gain" in text
    seeds = SweptParameter("train.learning_rate", {"a": 1e-5, "b": 1e-5, "c": 3e-5, "d": 3e-5}, is_share=False)
    points = swept_points(a=(0.1, 0.05), b=(0.9, 0.05), c=(0.05, 0.05), d=(0.06, 0.05))
    text = recommendation.recommend(points, "desk/nll", "chat/nll", seeds).full_text
    assert "train.learning_rate of 3e-05 forgets least" in text
    assert "Based on 2 training runs per value" in text


@pytest.mark.parametrize(
    ("losses", "ends"),
    [
        ({"a": -0.17, "c": -0.21, "e": -0.37}, "; 25 % is best, significantly better than every smaller value"),
        ({"a": -0.17, "d": -0.36, "e": -0.37}, "; 25 % is best, and 10 % is not significantly different"),
        ({"a": -0.36, "d": -0.35, "e": -0.37}, "and no other value is significantly better"),
    ],
)
def test_smallest_value_is_sufficient_without_forgetting(losses, ends) -> None:
    points = swept_points(**{arm: (value, 0.03) for arm, value in losses.items()})
    result = recommendation.recommend(points, "desk/nll", "chat/nll", SHARES)
    assert result.value == 0.0
    assert result.headline == "no arm with close to the best gain forgets in chat/nll; 'e' improves most"
    begin = "No value of mitigations.mixing.share forgets in chat/nll: even 0 % improves it"
    assert result.enough.startswith(begin)
    assert result.enough.endswith(ends)
    one = [points[0], *swept_points(d=(0.01, 0.03))]
    assert "forgets least" in recommendation.recommend(one, "desk/nll", "chat/nll", SHARES).headline


def test_no_value_is_sufficient_if_seeds_of_the_best_differ() -> None:
    """Two seeds of one value often differ over the same items; then no value is named."""
    seeds = SweptParameter("train.learning_rate", {"a": 1e-5, "b": 1e-5, "c": 3e-5, "d": 3e-5}, is_share=False)
    points = swept_points(a=(0.1, 0.01), b=(0.9, 0.05), c=(0.7, 0.05), d=(0.8, 0.05))
    result = recommendation.recommend(points, "desk/nll", "chat/nll", seeds)
    assert (result.arm, result.value) == ("a", None)
    assert result.enough == (
        "No value of train.learning_rate is sufficient: at every value a training run forgets significantly more in "
        "chat/nll than the best arm 'a' at 1e-05"
    )
    points = swept_points(a=(0.06, 0.05), b=(0.9, 0.05), c=(0.05, 0.05), d=(0.06, 0.05))
    text = recommendation.recommend(points, "desk/nll", "chat/nll", seeds).enough
    assert text.endswith(
        "every smaller value with close to the best gain has a training run that forgets significantly more"
    )


def test_arm_with_too_little_gain_is_not_a_choice() -> None:
    points = swept_points(b=(0.2, 0.05), c=(0.1, 0.02))
    idle = ArmPoint("a", Estimate(0.01, 0.01, -0.01, 0.03, 50), Estimate(0.0, 0.001, 0.0, 0.0, 50), None, True)
    text = recommendation.recommend([idle, *points], "desk/nll", "chat/nll", SHARES).full_text
    assert "share of 5 %" in text
    assert "0 %" not in text


def test_arms_that_do_not_differ_are_found_by_paired_items() -> None:
    points = swept_points(b=(0.12, 0.05), d=(0.08, 0.05))

    def paired(point: ArmPoint, other: ArmPoint) -> Estimate:
        gap = point.forgotten.value - other.forgotten.value
        return Estimate(gap, 0.005, gap - 0.01, gap + 0.01, 50)

    assert recommendation.recommend(points, "desk/nll", "chat/nll").alike == ("b",)
    result = recommendation.recommend(points, "desk/nll", "chat/nll", forgetting_difference=paired)
    assert (result.arm, result.alike, result.indistinguishable_clause) == ("d", (), "")


def test_arm_without_value_may_be_recommended_beside_a_sufficient_value() -> None:
    points = swept_points(naive=(0.04, 0.01), a=(0.5, 0.05), c=(0.1, 0.05))
    values = SweptParameter("mitigations.ewc.strength", {"a": 1.0, "c": 10.0}, is_share=False)
    result = recommendation.recommend(points, "desk/nll", "chat/nll", values)
    assert (result.arm, result.value) == ("naive", 10.0)
    assert result.enough.startswith("mitigations.ewc.strength of 10 forgets least")
    alone = recommendation.recommend(points[:1], "desk/nll", "chat/nll", values)
    assert (alone.arm, alone.value, alone.enough) == ("naive", None, "")


def test_full_text_is_sentences_with_the_note_first() -> None:
    points = swept_points(a=(0.5, 0.05), c=(0.12, 0.05), d=(0.08, 0.05))
    result = recommendation.recommend(points, "desk/nll", "chat/nll", SHARES, note="the baseline 'x' has no result yet")
    assert (result.arm, result.value, result.alike) == ("d", 0.05, ("c",))
    assert result.full_text == (
        "the baseline 'x' has no result yet; of the arms with close to the best gain, 'd' forgets least in "
        f"chat/nll (it forgets 0.08 [0.03, 0.13]); c is not significantly different. {result.enough}. {result.rests}"
    )
