"""Recommend an arm, and the smallest sufficient value of a swept parameter, from gain and forgetting.

"About as much" and "enough" are claims of non-inferiority: the upper bound of the paired difference to every other arm
is below a margin. An interval that includes 0 is not such a claim.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from harness.statistics.intervals import Estimate
from harness.statistics.seeds import SeedSpread
from harness.types import MIN_ITEMS
from harness.utils.formatting import format_number

if TYPE_CHECKING:
    from harness.report.spec_diff import SweptParameter

Difference = Callable[[str, str], Estimate]
"""Returns how much more the first arm gains or forgets than the second, with its 95 % interval."""


@dataclass(frozen=True)
class Axes:
    """The two scores by which arms are compared, and the margins within which they count as equal.

    Attributes:
        gain: `suite/score`.
        forgetting: `suite/score` or `summary:score`.
        gain_margin: An arm gains about as much as another if it gains less by at most this.
        forgetting_margin: The same for forgetting more.
    """

    gain: str
    forgetting: str
    gain_margin: float
    forgetting_margin: float


@dataclass(frozen=True)
class ArmPoint:
    """Gain and forgetting of an arm, both positive if there is some.

    Both are relative to the base model. Forgetting by a summary of the run's matrix is as the summary defines it.

    Attributes:
        arm: Name of the arm.
        gain: Improvement on the gain score; over several seeds the mean.
        forgotten: Deterioration on the forgetting score; over several seeds the mean.
        recovered: Fraction of the baseline's forgetting that the arm prevented, by the same seeds. None for the
            baseline itself, and if the baseline's forgetting does not exceed two standard errors.
        efficient: Whether no other arm gains as much and forgets less.
        seeds: The seeds with a result.
        gain_spread: The gain of every seed; None for one seed.
        forgotten_spread: The forgetting of every seed; None for one seed.
    """

    arm: str
    gain: Estimate
    forgotten: Estimate
    recovered: float | None
    efficient: bool
    seeds: tuple[int, ...] = ()
    gain_spread: SeedSpread | None = None
    forgotten_spread: SeedSpread | None = None


@dataclass(frozen=True)
class Recommendation:
    """A recommendation in sentences without full stops; a sentence is empty if it does not apply.

    Attributes:
        headline: The recommended arm, or why there is none.
        note: What restricts the recommendation.
        cost: How much the arm forgets, with the interval.
        alike: The arms that gain about as much, and of which it is not shown that they forget more.
        unclear: The arms of which it cannot be said whether they gain about as much.
        enough: The smallest sufficient value of the swept parameter.
        rests: Number of seeds, and what the intervals cover.
        arm: Name of the recommended arm; None without a recommendation.
        value: The smallest sufficient value; None if there is none.
    """

    headline: str
    note: str = ""
    cost: str = ""
    alike: tuple[str, ...] = ()
    unclear: str = ""
    enough: str = ""
    rests: str = ""
    arm: str | None = None
    value: float | None = None

    @property
    def full_text(self) -> str:
        """The complete recommendation, without the last full stop."""
        headline = f"{self.headline} ({self.cost})" if self.cost else self.headline
        first = "; ".join(clause for clause in (self.note, headline, self.indistinguishable_clause) if clause)
        return ". ".join(sentence for sentence in (first, self.unclear, self.enough, self.rests) if sentence)

    @property
    def indistinguishable_clause(self) -> str:
        """A clause with the arms that are not shown to forget more; "" if there are none."""
        verb = "is" if len(self.alike) == 1 else "are"
        return f"{', '.join(self.alike)} {verb} not shown to forget more" if self.alike else ""


def recommend(
    points: Sequence[ArmPoint],
    axes: Axes,
    *,
    gain_difference: Difference,
    forgetting_difference: Difference,
    swept_parameter: SweptParameter | None = None,
    note: str = "",
) -> Recommendation:
    """Recommend the arm that forgets least, among those whose gain is significant and about as large as the best.

    An arm gains about as much as the best if, for every other arm, the upper bound of the paired difference "other arm
    minus this arm" is at most the margin. The largest of these bounds is one for the difference to the best arm,
    whichever that is, so no correction is needed (intersection-union test; Berger, 1982,
    doi:10.1080/00401706.1982.10487790). The arm that gains most is always a choice.

    Args:
        points: The arms.
        axes: The scores and their margins.
        gain_difference: Difference of gain between two arms.
        forgetting_difference: Difference of forgetting between two arms.
        swept_parameter: The only number in which the arms differ; its smallest sufficient value is then included.
        note: See `Recommendation`.
    """
    if points and all(point.gain.units < MIN_ITEMS for point in points):
        return Recommendation(f"{axes.gain} has fewer than {MIN_ITEMS} items: too few to recommend an arm", note)
    measured = [point for point in points if not math.isnan(point.forgotten.value)]
    learned = [point for point in measured if point.gain.low > 0 and point.gain.units >= MIN_ITEMS]
    if not learned:
        return Recommendation(f"no arm gains significantly in {axes.gain}: none can be recommended", note)

    best = max(learned, key=lambda point: point.gain.value)
    deficits = {point.arm: _differences(point, learned, lambda a, b: gain_difference(b, a)) for point in learned}
    candidates = [
        point for point in learned if point is best or all(gap.high <= axes.gain_margin for gap in deficits[point.arm])
    ]
    undecided = [
        point.arm
        for point in learned
        if point not in candidates and not any(gap.low > axes.gain_margin for gap in deficits[point.arm])
    ]
    chosen = min(candidates, key=lambda point: point.forgotten.value)
    if all(classify_forgetting(point.forgotten) == "better" for point in candidates):
        headline = (
            f"no arm with about the best gain forgets in {axes.forgetting}; {chosen.arm!r} improves most"
            if len(candidates) > 1
            else f"{chosen.arm!r} has the best gain and does not forget in {axes.forgetting}"
        )
    elif len(candidates) == 1 and len(learned) > 1:
        headline = f"{chosen.arm!r} gains most, and no other arm is shown to gain about as much"
    else:
        headline = f"of the arms with about the best gain, {chosen.arm!r} forgets least in {axes.forgetting}"
    recommendation = Recommendation(
        headline,
        note,
        _describe_forgetting(chosen.forgotten),
        # A NaN bound does not make a difference significant.
        tuple(
            point.arm
            for point in candidates
            if point is not chosen and not forgetting_difference(point.arm, chosen.arm).low > 0
        ),
        unclear=_describe_undecided(undecided, axes, min(point.gain.n for point in learned)),
        rests=_describe_basis(learned),
        arm=chosen.arm,
    )
    if swept_parameter is None or not any(point.arm in swept_parameter.values for point in candidates):
        return recommendation
    rivals = [point for point in learned if point in candidates or point.arm in undecided]
    return add_smallest_sufficient(
        recommendation, candidates, rivals, axes, swept_parameter, forgetting_difference=forgetting_difference
    )


def add_smallest_sufficient(
    recommendation: Recommendation,
    candidates: Sequence[ArmPoint],
    rivals: Sequence[ArmPoint],
    axes: Axes,
    swept_parameter: SweptParameter,
    *,
    forgetting_difference: Difference,
) -> Recommendation:
    """Return the recommendation with the smallest sufficient value of the swept parameter.

    A value is sufficient if its arm is shown to forget more than any rival by at most the margin. Values are tested
    from the best one downwards, and the first that is not sufficient ends the test. Such a fixed sequence keeps its
    error rate without a correction (Maurer, Hothorn & Lehmacher, 1995). If no arm forgets, the smallest value is
    sufficient.

    Args:
        recommendation: The recommendation.
        candidates: The arms to choose from; at least one has a value.
        rivals: The candidates, and the arms of which it cannot be said whether they gain about as much.
        axes: The scores and their margins.
        swept_parameter: The swept parameter and its values.
        forgetting_difference: Difference of forgetting between two arms.
    """
    points, rivals = ([point for point in each if point.arm in swept_parameter.values] for each in (candidates, rivals))
    best = min(points, key=lambda point: point.forgotten.value)
    best_value = swept_parameter.values[best.arm]
    values = sorted({swept_parameter.values[point.arm] for point in points})
    key, score, text_of = swept_parameter.key, axes.forgetting, swept_parameter.format_value
    if all(classify_forgetting(point.forgotten) == "better" for point in points):
        sentence = f"No value of {key} forgets in {score}: even {text_of(values[0])} improves it"
        if best_value != values[0]:
            sentence += f"; {text_of(best_value)} improves it most"
        return replace(recommendation, enough=sentence, value=values[0])

    def excesses(value: float) -> list[Estimate]:
        arms = [point for point in points if swept_parameter.values[point.arm] == value]
        return [gap for point in arms for gap in _differences(point, rivals, forgetting_difference)]

    sufficient: float | None = None
    rejected: float | None = None
    for value in reversed([value for value in values if value <= best_value]):
        gaps = excesses(value)
        if any(gap.units < MIN_ITEMS or not gap.high <= axes.forgetting_margin for gap in gaps):
            rejected = value
            break
        sufficient = value
    n = min(point.forgotten.n for point in points)
    margin = format_number(axes.forgetting_margin)
    if sufficient is None:
        sentence = (
            f"Which value of {key} is enough cannot be said with n = {n:,} items: of none is it shown that it forgets "
            f"at most {margin} more in {score} than the best"
        )
        return replace(recommendation, enough=sentence)
    gaps = excesses(sufficient)
    worst = max(gaps, key=lambda gap: gap.high) if gaps else None
    sentence = f"{key} of {text_of(sufficient)} is enough"
    if worst is not None:
        sentence += (
            f": it forgets at most {margin} more in {score} than any other value (largest difference "
            f"{_interval_text(worst)})"
        )
    if rejected is not None:
        gap = max(excesses(rejected), key=lambda gap: gap.high)
        verdict = f"{text_of(rejected)} forgets more than that" if gap.low > axes.forgetting_margin else (
            f"of {text_of(rejected)} it cannot be said with n = {n:,} items"
        )  # fmt: skip
        sentence += f"; {verdict} ({_interval_text(gap)})"
    elif sufficient == min(swept_parameter.values.values()):
        sentence += "; it is the smallest value"
    else:
        sentence += "; no smaller value is shown to gain about as much as the best"
    return replace(recommendation, enough=sentence, value=sufficient)


def classify_forgetting(forgetting: Estimate) -> Literal["few", "worse", "better", "even"]:
    """Return `worse` or `better` for a significant change, `few` for too few items, else `even`."""
    if not forgetting.units >= MIN_ITEMS or math.isnan(forgetting.low):
        return "few"
    return "worse" if forgetting.low > 0 else "better" if forgetting.high < 0 else "even"


def _differences(point: ArmPoint, points: Sequence[ArmPoint], difference: Difference) -> list[Estimate]:
    return [difference(point.arm, other.arm) for other in points if other is not point]


def _describe_undecided(arms: Sequence[str], axes: Axes, n: int) -> str:
    if not arms:
        return ""
    verb = "gains" if len(arms) == 1 else "gain"
    return (
        f"Whether {', '.join(arms)} {verb} about as much as the best (at most {format_number(axes.gain_margin)} less "
        f"in {axes.gain}) cannot be said with n = {n:,} items"
    )


def _describe_basis(points: Sequence[ArmPoint]) -> str:
    counts = sorted({max(1, len(point.seeds)) for point in points})
    if counts == [1]:
        return "Based on one seed; the intervals cover the items only"
    number = str(counts[0]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    return f"Based on {number} seeds; the intervals cover seeds and items"


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


def _interval_text(gap: Estimate) -> str:
    bounds = f"[{format_number(gap.low, sign=True)}, {format_number(gap.high, sign=True)}]"
    return f"{format_number(gap.value, sign=True)} {bounds}"


def _three_digits(value: float) -> str:
    return f"{value:.3g}".replace("-", "−")
