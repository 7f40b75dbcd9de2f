"""What a person can take from the points of an experiment, and how sure it is.

Knows points and their intervals, and the one number that arms may have been swept over. Knows no run.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from harness.report.run_report import MIN_ITEMS
from harness.statistics.intervals import Estimate
from harness.utils.formatting import format_number

if TYPE_CHECKING:
    from harness.report.spec_diff import SweptParameter

ForgettingDifference = Callable[["ArmPoint", "ArmPoint"], Estimate]
"""How much more the first point's arm forgets than the second's, with its 95 % interval."""


@dataclass(frozen=True)
class Recommendation:
    """What can be recommended. headline: a clause that stands alone; the others are empty where nothing is to be said.

    note: what to know before it. cost: what the arm forgets, with its interval. alike: the arms that cannot be told
    from it. enough: which value of what was swept suffices, and how far that goes. rests: on how many training runs a
    value. arm: the one that is recommended; value: of what was swept, that is enough. Both None where nothing can be.
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
        """All of it in sentences, the last without its full stop."""
        told = f"{self.note}; {self.headline}" if self.note else self.headline
        told += f" ({self.cost})" if self.cost else ""
        told += f"; {self.indistinguishable_clause}" if self.alike else ""
        return ". ".join(one for one in (told, self.enough, self.rests) if one)

    @property
    def indistinguishable_clause(self) -> str:
        """The arms that cannot be told from the recommended one, in a clause; empty where there are none."""
        return f"{', '.join(self.alike)} cannot be told from it" if self.alike else ""


def unpaired_difference(first: ArmPoint, second: ArmPoint) -> Estimate:
    """one's forgetting less other's as if their items had nothing in common.

    Wider than an interval over the same items wherever these move together, so it never tells apart too much.
    """
    gap = first.forgotten.value - second.forgotten.value
    stderr = (first.forgotten.stderr**2 + second.forgotten.stderr**2) ** 0.5
    return Estimate(gap, stderr, gap - 1.96 * stderr, gap + 1.96 * stderr, min(first.forgotten.n, second.forgotten.n))


def recommend(
    points: Sequence[ArmPoint],
    gain_score: str,
    forgetting_score: str,
    swept_parameter: SweptParameter | None = None,
    *,
    forgetting_difference: ForgettingDifference | None = None,
    note: str = "",
) -> Recommendation:
    """What can be recommended.

    Of the arms that gain beyond doubt and whose gain is not clearly below the best one's, the one that forgets least;
    others whose forgetting cannot be told from its are named with it. swept_parameter: the one number that the arms
    differ in; then it is also said which of its values is enough. forgetting_difference: see `ForgettingDifference`; None: `unpaired_difference`.
    note: see `Recommendation`.
    """
    known = [one for one in points if not math.isnan(one.forgotten.value)]
    learned = [one for one in known if one.gain.low > 0 and one.gain.n >= MIN_ITEMS]
    if not learned and points and all(one.gain.n < MIN_ITEMS for one in points):
        return Recommendation(
            f"{gain_score} has fewer than {MIN_ITEMS} items, which is too few to recommend an arm", note
        )
    if not learned:
        return Recommendation(f"no arm gains in {gain_score} beyond doubt, so none can be recommended", note)
    best = max(learned, key=lambda one: one.gain.value)
    as_good = [one for one in learned if one.gain.high >= best.gain.low]
    first = min(as_good, key=lambda one: one.forgotten.value)
    gap = forgetting_difference or unpaired_difference
    if all(classify_forgetting(one.forgotten) == "better" for one in as_good):
        headline = (
            f"no arm that gains about as much as the best forgets in {forgetting_score}; {first.arm!r} ends best in it"
        )
    else:
        headline = f"of the arms that gain about as much as the best, {first.arm!r} forgets least in {forgetting_score}"
    made = Recommendation(
        headline,
        note,
        _format_forgetting(first.forgotten),
        # An interval that is no number tells nothing apart.
        tuple(one.arm for one in as_good if one.arm != first.arm and not gap(one, first).low > 0),
        arm=first.arm,
    )
    placed = [] if swept_parameter is None else [one for one in as_good if one.arm in swept_parameter.values]
    return (
        made
        if swept_parameter is None or not placed
        else add_smallest_sufficient(made, placed, forgetting_score, swept_parameter, gap)
    )


def classify_forgetting(forgetting: Estimate) -> Literal["few", "worse", "better", "even"]:
    """What an arm's forgetting and its interval come to."""
    if not forgetting.n >= MIN_ITEMS or math.isnan(forgetting.low):
        return "few"
    return "worse" if forgetting.low > 0 else "better" if forgetting.high < 0 else "even"


def _format_forgetting(forgetting: Estimate) -> str:
    kind = classify_forgetting(forgetting)
    if kind == "few":
        return f"{format_number(forgetting.value, sign=True)} over n = {forgetting.n}, too few items to tell"
    if kind == "worse":
        return f"it forgets {_format_digits(forgetting.value)} [{_format_digits(forgetting.low)}, {_format_digits(forgetting.high)}]"
    if kind == "better":
        return f"it got better by {_format_digits(-forgetting.value)} [{_format_digits(-forgetting.high)}, {_format_digits(-forgetting.low)}]"
    return f"no evidence of forgetting [{_format_digits(forgetting.low)}, {_format_digits(forgetting.high)}]"


def _format_digits(value: float) -> str:
    return f"{value:.3g}".replace("-", "−")


def add_smallest_sufficient(
    recommendation: Recommendation,
    points: Sequence[ArmPoint],
    forgetting_score: str,
    swept_parameter: SweptParameter,
    forgetting_difference: ForgettingDifference,
) -> Recommendation:
    """The advice with the smallest value whose forgetting cannot be told from the least, and how far that goes.

    Where nothing is forgotten with any of them the smallest is enough, and it is said what more of it is good for.

    points: those to choose from, each with a value, one at least. A value with several arms (seeds) is enough when
    every one of them cannot be told from the arm that forgets least; it may be that none is.
    """
    first = min(points, key=lambda one: one.forgotten.value)
    by_value: dict[float, list[ArmPoint]] = {}
    for one in points:
        by_value.setdefault(swept_parameter.values[one.arm], []).append(one)
    gaps = {
        value: [forgetting_difference(one, first) for one in arms if one.arm != first.arm]
        for value, arms in sorted(by_value.items())
    }
    # An interval that is no number tells nothing apart.
    value = next((value for value, found in gaps.items() if not any(gap.low > 0 for gap in found)), None)
    least = swept_parameter.values[first.arm]
    name = "" if value is None else f"{swept_parameter.key} of {swept_parameter.format_value(value)}"
    if value is None:
        said = (
            f"No {swept_parameter.key} is enough for certain: at every value some training run forgets more in {forgetting_score} beyond "
            f"doubt than {first.arm!r}, which forgets least, at {swept_parameter.format_value(least)}"
        )
    elif value == least:
        more_of = "forgets more" if len(points) == len(by_value) else "has a training run that forgets more"
        if any(one < value for one in by_value):
            beyond = f"every smaller one that gains as much {more_of} beyond doubt"
        elif any(one < value for one in swept_parameter.values.values()):
            beyond = "no smaller one gains as much"
        else:
            beyond = "and none is smaller"
        said = f"{name} is where {forgetting_score} suffers least; {beyond}"
    else:
        gap = max(gaps[value], key=lambda one: one.value)
        said = (
            f"The smallest that cannot be told from the least forgetting in {forgetting_score} is {name}: it forgets "
            f"{format_number(gap.value)} [{format_number(gap.low, sign=True)}, {format_number(gap.high, sign=True)}] more than "
            f"{swept_parameter.format_value(least)}"
        )
    if all(classify_forgetting(one.forgotten) == "better" for one in points):
        said, value = _no_forgetting_sentence(forgetting_score, swept_parameter, sorted(by_value), value, least)
    seeds = min(len(arms) for arms in by_value.values())
    runs = "one training run" if seeds == 1 else f"{seeds} training runs"
    rests = f"That rests on {runs} a value; the intervals are over the items alone"
    return replace(recommendation, enough=said, rests=rests, value=value)


def _no_forgetting_sentence(
    forgetting_score: str,
    swept_parameter: SweptParameter,
    values: Sequence[float],
    sufficient: float | None,
    best: float,
) -> tuple[str, float]:
    """What is said where nothing is forgotten, and the value that is enough: the smallest.

    values: ascending. best: with which it ends best; sufficient: the smallest that cannot be told from it, None: see
    above.
    """
    said = f"Nothing is forgotten in {forgetting_score} with any {swept_parameter.key}: it got better even with {swept_parameter.format_value(values[0])}"
    if sufficient == values[0]:
        return f"{said}, and no other ends beyond doubt better", values[0]
    said += f"; it ends best with {swept_parameter.format_value(best)}"
    if sufficient == best:
        said += ", beyond doubt better than with less"
    elif sufficient is not None:
        said += f", from which {swept_parameter.format_value(sufficient)} cannot be told"
    return said, values[0]


@dataclass(frozen=True)
class ArmPoint:
    """An arm in the plane of gain and forgetting, both positive where there is some.

    Both are against the base model, but for forgetting by a summary of the run's matrix, which says against what.
    recovered: the share of the baseline's forgetting that the arm prevented, None where the baseline forgot nothing
    beyond two standard errors, and for itself. efficient: whether no other arm gains as much and forgets less.
    """

    arm: str
    gain: Estimate
    forgotten: Estimate
    recovered: float | None
    efficient: bool
