"""Recommendations from the points of an experiment: claims of non-inferiority, by a margin."""

from __future__ import annotations

import math

import pytest

from harness.report import recommendation
from harness.report.recommendation import ArmPoint, Axes, Recommendation
from harness.report.spec_diff import SweptParameter
from harness.statistics.intervals import Estimate

AXES = Axes("desk/nll", "chat/nll", gain_margin=0.05, forgetting_margin=0.06)
SHARES = SweptParameter(
    "mitigations.mixing.share", {"a": 0.0, "b": 0.01, "c": 0.05, "d": 0.1, "e": 0.25}, is_share=True
)


def estimate(value: float, half: float, n: int = 50) -> Estimate:
    return Estimate(value, half / 2, value - half, value + half, n)


def swept_points(gain: float = 0.3, **losses: float) -> list[ArmPoint]:
    """Return arms with the same gain; name -> forgetting."""
    return [ArmPoint(arm, estimate(gain, 0.04), estimate(loss, 0.05), None, True) for arm, loss in losses.items()]


def recommend(
    points: list[ArmPoint],
    swept: SweptParameter | None = None,
    *,
    half: float = 0.01,
    gain_half: float = 0.01,
    note: str = "",
) -> Recommendation:
    """Recommend with paired differences whose 95 % intervals have these half widths."""
    by_arm = {point.arm: point for point in points}

    def difference(quantity: str):
        def paired(arm: str, other: str) -> Estimate:
            first, second = (getattr(by_arm[each], quantity) for each in (arm, other))
            return estimate(first.value - second.value, half if quantity == "forgotten" else gain_half, first.n)

        return paired

    return recommendation.recommend(
        points,
        AXES,
        gain_difference=difference("gain"),
        forgetting_difference=difference("forgotten"),
        swept_parameter=swept,
        note=note,
    )


def test_only_arms_shown_to_gain_about_as_much_are_choices() -> None:
    points = [
        ArmPoint("naive", estimate(0.30, 0.05), estimate(0.50, 0.1), None, True),
        ArmPoint("small", estimate(0.29, 0.05), estimate(0.051, 0.1), 0.8, True),
        ArmPoint("large", estimate(0.28, 0.05), estimate(0.05, 0.1), 0.9, True),
        ArmPoint("less", estimate(0.23, 0.05), estimate(-0.3, 0.1), 0.9, True),
        ArmPoint("frozen", estimate(0.00, 0.01), estimate(0.00, 0.01), 1.0, True),
    ]
    result = recommend(points)
    assert result.arm == "large"
    assert result.headline == "of the arms with about the best gain, 'large' forgets least in chat/nll"
    assert "no evidence of forgetting" in result.cost
    assert result.alike == ("small",)
    assert result.indistinguishable_clause == "small is not shown to forget more"
    assert result.unclear == "", "'less' is shown to gain less by more than the margin"
    assert "less" not in result.alike
    assert recommend(points[4:]).arm is None
    assert "none can be recommended" in recommend(points[4:]).headline


def test_overlapping_unpaired_intervals_do_not_make_gains_equal() -> None:
    """The paired difference of 0.06 ± 0.01 exceeds the margin of 0.05, though both gains are known to ± 0.2 only."""
    points = [
        ArmPoint("best", estimate(0.50, 0.2), estimate(0.5, 0.1), None, True),
        ArmPoint("worse", estimate(0.44, 0.2), estimate(0.0, 0.1), None, True),
    ]
    assert recommend(points, gain_half=0.005).arm == "best"
    assert recommend(points, gain_half=0.005).unclear == ""
    wide = recommend(points, gain_half=0.02)
    assert wide.arm == "best"
    assert wide.unclear == (
        "Whether worse gains about as much as the best (at most 0.0500 less in desk/nll) cannot be said with n = 50 "
        "items"
    )
    assert wide.headline == "'best' gains most, and no other arm is shown to gain about as much"


def test_few_items_or_nan_give_no_recommendation() -> None:
    gain, nothing = estimate(0.3, 0.04), Estimate(math.nan, math.nan, math.nan, math.nan, 50)
    few = estimate(0.3, 0.04, n=29)
    assert (
        recommend([ArmPoint("a", few, few, None, True)]).full_text
        == "desk/nll has fewer than 30 items: too few to recommend an arm"
    )
    one_nan = [ArmPoint("a", gain, nothing, None, True), ArmPoint("b", gain, gain, None, True)]
    assert recommend(one_nan).arm == "b"
    assert "none can be recommended" in recommend(one_nan[:1]).full_text
    assert "over n = 29, too few items for a verdict" in recommend([ArmPoint("a", gain, few, None, True)]).full_text


def test_smallest_value_within_the_margin_is_enough() -> None:
    result = recommend(swept_points(a=0.5, b=0.4, c=0.12, d=0.08, e=0.1), SHARES)
    assert (result.arm, result.value) == ("d", 0.05)
    assert result.enough == (
        "mitigations.mixing.share of 5 % is enough: it forgets at most 0.0600 more in chat/nll than any other value "
        "(largest difference +0.0400 [+0.0300, +0.0500]); 1 % forgets more than that (+0.320 [+0.310, +0.330])"
    )
    assert result.rests == "Based on one seed; the intervals cover the items only"


def test_few_items_cannot_show_that_a_value_is_enough() -> None:
    """Failing to tell two values apart does not make the smaller one enough."""
    points = swept_points(a=0.10, c=0.09, e=0.08)
    wide = recommend(points, SHARES, half=0.2)
    assert wide.value is None
    assert wide.enough.startswith("Which value of mitigations.mixing.share is enough cannot be said with n = 50 items")
    some = recommend(points, SHARES, half=0.045)
    assert some.value == 0.05
    assert "; of 0 % it cannot be said with n = 50 items (+0.0200 [−0.0250, +0.0650])" in some.enough
    assert recommend(points, SHARES, half=0.03).value == 0.0
    unclear = recommend(points, SHARES, half=0.2, gain_half=0.2)
    assert (unclear.arm, unclear.value) == ("a", None), "an arm whose gain is unclear may still forget less"
    few = [ArmPoint(one.arm, one.gain, estimate(one.forgotten.value, 0.05, 29), None, True) for one in points]
    assert recommend(few, SHARES, half=0.001).value is None, "below 30 items nothing is shown"


def test_a_value_below_one_that_is_not_enough_is_not_tested() -> None:
    """Values are tested in a fixed sequence from the best one, so that many values need no correction."""
    assert recommend(swept_points(a=0.1, b=0.9, c=0.1, d=0.09), SHARES).value == 0.05


def test_enough_says_why_no_smaller_value_is_named() -> None:
    best = recommend(swept_points(a=0.1, b=0.5), SHARES)
    assert best.value == 0.0
    assert best.enough.endswith("; it is the smallest value")
    idle = ArmPoint("a", estimate(0.01, 0.02), estimate(0.9, 0.02), None, True)
    result = recommend([idle, *swept_points(b=0.1, c=0.5)], SHARES)
    assert result.value == 0.01
    assert result.enough.endswith("; no smaller value is shown to gain about as much as the best")


def test_smallest_value_is_enough_without_forgetting() -> None:
    result = recommend(swept_points(a=-0.17, c=-0.21, e=-0.37), SHARES)
    assert result.value == 0.0
    assert result.headline == "no arm with about the best gain forgets in chat/nll; 'e' improves most"
    assert (
        result.enough
        == "No value of mitigations.mixing.share forgets in chat/nll: even 0 % improves it; 25 % improves it most"
    )
    assert "forgets least" in recommend(swept_points(a=-0.17, d=0.01), SHARES).headline


def test_arm_without_value_may_be_recommended_beside_a_sufficient_value() -> None:
    points = swept_points(naive=0.04, a=0.5, c=0.1)
    values = SweptParameter("mitigations.ewc.strength", {"a": 1.0, "c": 10.0}, is_share=False)
    result = recommend(points, values)
    assert (result.arm, result.value) == ("naive", 10.0)
    alone = recommend(points[:1], values)
    assert (alone.arm, alone.value, alone.enough) == ("naive", None, "")


@pytest.mark.parametrize(
    ("counts", "text"),
    [
        ((3, 3), "Based on 3 seeds; the intervals cover seeds and items"),
        ((2, 3), "Based on 2 to 3 seeds; the intervals cover seeds and items"),
        ((1, 1), "Based on one seed; the intervals cover the items only"),
    ],
)
def test_recommendation_says_how_many_seeds_it_rests_on(counts: tuple[int, int], text: str) -> None:
    points = [
        ArmPoint(arm, estimate(0.3, 0.04), estimate(0.1, 0.05), None, True, tuple(range(count)))
        for arm, count in zip("ab", counts, strict=True)
    ]
    assert recommend(points).rests == text


def test_full_text_is_sentences_with_the_note_first() -> None:
    result = recommend(swept_points(a=0.5, c=0.085, d=0.08), SHARES, note="the baseline 'x' has no result yet")
    assert (result.arm, result.value, result.alike) == ("d", 0.05, ("c",))
    assert result.full_text == (
        "the baseline 'x' has no result yet; of the arms with about the best gain, 'd' forgets least in chat/nll (it "
        f"forgets 0.08 [0.03, 0.13]); c is not shown to forget more. {result.enough}. {result.rests}"
    )
