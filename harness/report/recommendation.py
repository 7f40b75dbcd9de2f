"""Recommend an arm, and the smallest sufficient value of a swept parameter, from gain and forgetting."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from harness.statistics.intervals import Estimate
from harness.types import MIN_ITEMS
from harness.utils.formatting import format_number

if TYPE_CHECKING:
    from harness.report.spec_diff import SweptParameter

ForgettingDifference = Callable[["ArmPoint", "ArmPoint"], Estimate]
"""Returns how much more the first point's arm forgets than the second's, with its 95 % interval."""


@dataclass(frozen=True)
class ArmPoint:
    """Gain and forgetting of an arm, both positive if there is some.

    Both are relative to the base model. Forgetting by a summary of the run's matrix is as the summary defines it.

    Attributes:
        arm: Name of the arm.
        gain: Improvement on the gain score.
        forgotten: Deterioration on the forgetting score.
        recovered: Fraction of the baseline's forgetting that the arm prevented. None for the baseline itself, and if
            the baseline's forgetting does not exceed two standard errors.
        efficient: Whether no other arm gains as much and forgets less.
    """

    arm: str
    gain: Estimate
    forgotten: Estimate
    recovered: float | None
    efficient: bool


@dataclass(frozen=True)
class Recommendation:
    """A recommendation in sentences without full stops; a sentence is empty if it does not apply.

    Attributes:
        headline: The recommended arm, or why there is none.
        note: What restricts the recommendation.
        cost: How much the arm forgets, with the interval.
        alike: The arms whose forgetting is not significantly different.
        enough: The smallest sufficient value of the swept parameter.
        rests: Number of training runs per value.
        arm: Name of the recommended arm; None without a recommendation.
        value: The smallest sufficient value; None if there is none.
    """

    headline: str
    note: str = ""
    cost: str = ""
    alike: tuple[str, ...] = ()
    enough: str = ""
    rests: str = ""
    arm: str | None = None
    value: float | None = None

    @property
    def full_text(self) -> str:
        """The complete recommendation, without the last full stop."""
        headline = f"{self.headline} ({self.cost})" if self.cost else self.headline
        first = "; ".join(clause for clause in (self.note, headline, self.indistinguishable_clause) if clause)
        return ". ".join(sentence for sentence in (first, self.enough, self.rests) if sentence)

    @property
    def indistinguishable_clause(self) -> str:
        """A clause with the arms that are not significantly different; "" if there are none."""
        verb = "is" if len(self.alike) == 1 else "are"
        return f"{', '.join(self.alike)} {verb} not significantly different" if self.alike else ""


def recommend(
    points: Sequence[ArmPoint],
    gain_score: str,
    forgetting_score: str,
    swept_parameter: SweptParameter | None = None,
    *,
    forgetting_difference: ForgettingDifference | None = None,
    note: str = "",
) -> Recommendation:
    """Recommend the arm that forgets least, among those whose gain is significant and close to the best.

    A gain is close to the best if its upper bound reaches the lower bound of the best gain.

    Args:
        points: The arms.
        gain_score: Name of the gain score.
        forgetting_score: Name of the forgetting score.
        swept_parameter: The only number in which the arms differ; its smallest sufficient value is then included.
        forgetting_difference: Difference of forgetting between two arms; None: `unpaired_difference`.
        note: See `Recommendation`.
    """
    if points and all(point.gain.units < MIN_ITEMS for point in points):
        return Recommendation(f"{gain_score} has fewer than {MIN_ITEMS} items: too few to recommend an arm", note)
    measured = [point for point in points if not math.isnan(point.forgotten.value)]
    learned = [point for point in measured if point.gain.low > 0 and point.gain.units >= MIN_ITEMS]
    if not learned:
        return Recommendation(f"no arm gains significantly in {gain_score}: none can be recommended", note)

    best_gain = max((point.gain for point in learned), key=lambda gain: gain.value)
    candidates = [point for point in learned if point.gain.high >= best_gain.low]
    chosen = min(candidates, key=lambda point: point.forgotten.value)
    difference = forgetting_difference or unpaired_difference
    if all(classify_forgetting(point.forgotten) == "better" for point in candidates):
        headline = f"no arm with close to the best gain forgets in {forgetting_score}; {chosen.arm!r} improves most"
    else:
        headline = f"of the arms with close to the best gain, {chosen.arm!r} forgets least in {forgetting_score}"
    recommendation = Recommendation(
        headline,
        note,
        _describe_forgetting(chosen.forgotten),
        # A NaN bound does not make a difference significant.
        tuple(point.arm for point in candidates if point is not chosen and not difference(point, chosen).low > 0),
        arm=chosen.arm,
    )
    with_value = [point for point in candidates if swept_parameter and point.arm in swept_parameter.values]
    if swept_parameter is None or not with_value:
        return recommendation
    return add_smallest_sufficient(recommendation, with_value, forgetting_score, swept_parameter, difference)


def add_smallest_sufficient(
    recommendation: Recommendation,
    points: Sequence[ArmPoint],
    forgetting_score: str,
    swept_parameter: SweptParameter,
    forgetting_difference: ForgettingDifference,
) -> Recommendation:
    """Return the recommendation with the smallest sufficient value of the swept parameter.

    A value is sufficient if no arm with it forgets significantly more than the best arm. With several arms per value
    (seeds) there may be no such value. If no arm forgets, the smallest value is sufficient.

    Args:
        recommendation: The recommendation.
        points: The arms to choose from; each has a value, and there is at least one.
        forgetting_score: Name of the forgetting score.
        swept_parameter: The swept parameter and its values.
        forgetting_difference: Difference of forgetting between two arms.
    """
    best = min(points, key=lambda point: point.forgotten.value)
    best_value = swept_parameter.values[best.arm]
    points_by_value: dict[float, list[ArmPoint]] = {}
    for point in sorted(points, key=lambda point: swept_parameter.values[point.arm]):
        points_by_value.setdefault(swept_parameter.values[point.arm], []).append(point)
    differences = {
        value: [forgetting_difference(point, best) for point in value_points if point.arm != best.arm]
        for value, value_points in points_by_value.items()
    }
    # A NaN bound does not make a difference significant.
    sufficient = next(
        (value for value, gaps in differences.items() if not any(gap.low > 0 for gap in gaps)), None
    )  # values are in ascending order
    smallest = next(iter(points_by_value))
    key, score, text_of = swept_parameter.key, forgetting_score, swept_parameter.format_value
    if all(classify_forgetting(point.forgotten) == "better" for point in points):
        sentence = f"No value of {key} forgets in {score}: even {text_of(smallest)} improves it"
        if sufficient == smallest:
            sentence += ", and no other value is significantly better"
        elif sufficient == best_value:
            sentence += f"; {text_of(best_value)} is best, significantly better than every smaller value"
        elif sufficient is not None:
            sentence += f"; {text_of(best_value)} is best, and {text_of(sufficient)} is not significantly different"
        else:
            sentence += f"; {text_of(best_value)} is best"
        sufficient = smallest
    elif sufficient is None:
        sentence = (
            f"No value of {key} is sufficient: at every value a training run forgets significantly more in {score} "
            f"than the best arm {best.arm!r} at {text_of(best_value)}"
        )
    elif sufficient == best_value:
        more = "forgets" if len(points) == len(points_by_value) else "has a training run that forgets"
        if smallest < sufficient:
            reason = f"every smaller value with close to the best gain {more} significantly more"
        elif min(swept_parameter.values.values()) < sufficient:
            reason = "no smaller value is close to the best gain"
        else:
            reason = "it is the smallest value"
        sentence = f"{key} of {text_of(sufficient)} forgets least in {score}; {reason}"
    else:
        gap = max(differences[sufficient], key=lambda gap: gap.value)
        sentence = (
            f"Smallest value not significantly worse than the best in {score}: {key} of {text_of(sufficient)} (forgets "
            f"{format_number(gap.value)} [{format_number(gap.low, sign=True)}, {format_number(gap.high, sign=True)}] "
            f"more than {text_of(best_value)})"
        )
    seeds = min(map(len, points_by_value.values()))
    runs = "one training run" if seeds == 1 else f"{seeds} training runs"
    rests = f"Based on {runs} per value; the intervals cover the items only"
    return replace(recommendation, enough=sentence, rests=rests, value=sufficient)


def unpaired_difference(first: ArmPoint, second: ArmPoint) -> Estimate:
    """Return the first arm's forgetting minus the second's, as if their items were independent.

    The interval is wider than a paired one if the items of both are correlated positively, so it is conservative.
    """
    gap = first.forgotten.value - second.forgotten.value
    stderr = (first.forgotten.stderr**2 + second.forgotten.stderr**2) ** 0.5
    return Estimate(gap, stderr, gap - 1.96 * stderr, gap + 1.96 * stderr, min(first.forgotten.n, second.forgotten.n))


def classify_forgetting(forgetting: Estimate) -> Literal["few", "worse", "better", "even"]:
    """Return `worse` or `better` for a significant change, `few` for too few items, else `even`."""
    if not forgetting.units >= MIN_ITEMS or math.isnan(forgetting.low):
        return "few"
    return "worse" if forgetting.low > 0 else "better" if forgetting.high < 0 else "even"


def _describe_forgetting(forgetting: Estimate) -> str:
    def interval(low: float, high: float) -> str:
        return f"[{_three_digits(low)}, {_three_digits(high)}]"

    match classify_forgetting(forgetting):
        case "few":
            return f"{format_number(forgetting.value, sign=True)} over n = {forgetting.n}, too few items for a verdict"
        case "worse":
            return f"it forgets {_three_digits(forgetting.value)} {interval(forgetting.low, forgetting.high)}"
        case "better":
            return f"it improves by {_three_digits(-forgetting.value)} {interval(-forgetting.high, -forgetting.low)}"
        case "even":
            return f"no evidence of forgetting {interval(forgetting.low, forgetting.high)}"


def _three_digits(value: float) -> str:
    return f"{value:.3g}".replace("-", "−")
