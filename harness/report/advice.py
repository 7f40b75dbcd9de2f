"""What a person can take from the points of an experiment, and how sure it is.

Knows points and their intervals, and the one number that arms may have been swept over. Knows no run.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from harness.intervals import Estimate
from harness.legible import number
from harness.report import FEWEST

if TYPE_CHECKING:
    from harness.report.arms import Point
    from harness.report.differing import Swept

More = Callable[["Point", "Point"], Estimate]
"""How much more the first point's arm forgets than the second's, with its 95 % interval."""


def apart(one: Point, other: Point) -> Estimate:
    """one's forgetting less other's as if their items had nothing in common.

    Wider than an interval over the same items wherever these move together, so it never tells apart too much.
    """
    gap = one.forgotten.value - other.forgotten.value
    stderr = (one.forgotten.stderr**2 + other.forgotten.stderr**2) ** 0.5
    return Estimate(gap, stderr, gap - 1.96 * stderr, gap + 1.96 * stderr, min(one.forgotten.n, other.forgotten.n))


def advise(
    points: Sequence[Point], gain: str, lost: str, swept: Swept | None = None, *, more: More | None = None
) -> str:
    """What can be recommended, in a sentence.

    Of the arms that gain beyond doubt and whose gain is not clearly below the best one's, the one that forgets least;
    others whose forgetting cannot be told from its are named with it. swept: the one number that the arms differ in;
    a second sentence then says which of its values is enough. more: see `More`; None: `apart`.
    """
    known = [one for one in points if not math.isnan(one.forgotten.value)]
    learned = [one for one in known if one.gain.low > 0 and one.gain.n >= FEWEST]
    if not learned and points and all(one.gain.n < FEWEST for one in points):
        return f"{gain} has fewer than {FEWEST} items, which is too few to recommend an arm"
    if not learned:
        return f"no arm gains in {gain} beyond doubt, so none can be recommended"
    best = max(learned, key=lambda one: one.gain.value)
    as_good = [one for one in learned if one.gain.high >= best.gain.low]
    first = min(as_good, key=lambda one: one.forgotten.value)
    alike = [one.arm for one in as_good if one.arm != first.arm and one.forgotten.low <= first.forgotten.high]
    told = f"; {', '.join(alike)} cannot be told from it" if alike else ""
    rise = first.forgotten
    if not rise.n >= FEWEST or math.isnan(rise.low):
        cost = f"{number(rise.value, sign=True)} over n = {rise.n}, too few items to tell"
    elif rise.low > 0:
        cost = f"it forgets {rise.value:.3g} [{rise.low:.3g}, {rise.high:.3g}]"
    elif rise.high < 0:
        cost = f"it got better by {-rise.value:.3g} [{-rise.high:.3g}, {-rise.low:.3g}]"
    else:
        cost = f"no evidence of forgetting [{rise.low:.3g}, {rise.high:.3g}]"
    said = f"of the arms that gain about as much as the best, {first.arm!r} forgets least in {lost} ({cost}){told}"
    return said if swept is None else f"{said}. {enough(as_good, lost, swept, more or apart)}"


def enough(points: Sequence[Point], lost: str, swept: Swept, more: More) -> str:
    """The smallest value of what was swept whose forgetting cannot be told from the least, and how far that goes.

    points: those to choose from, one at least. A value with several arms (seeds) is enough when every one of them
    cannot be told from the arm that forgets least.
    """
    first = min(points, key=lambda one: one.forgotten.value)
    by_value: dict[float, list[Point]] = {}
    for one in points:
        by_value.setdefault(swept.values[one.arm], []).append(one)
    gaps = {
        value: [more(one, first) for one in arms if one.arm != first.arm] for value, arms in sorted(by_value.items())
    }
    # An interval that is no number tells nothing apart.
    value = next(value for value, found in gaps.items() if not any(gap.low > 0 for gap in found))
    least = swept.values[first.arm]
    name = f"{swept.key} of {_shown(value, swept)}"
    if value == least:
        smaller = [one for one in by_value if one < value]
        beyond = "every smaller one that gains as much forgets more beyond doubt" if smaller else "and none is smaller"
        said = f"{name} is where {lost} suffers least; {beyond}"
    else:
        gap = max(gaps[value], key=lambda one: one.value)
        said = (
            f"The smallest that cannot be told from the least forgetting in {lost} is {name}: it forgets "
            f"{number(gap.value)} [{number(gap.low, sign=True)}, {number(gap.high, sign=True)}] more than "
            f"{_shown(least, swept)}"
        )
    seeds = min(len(arms) for arms in by_value.values())
    runs = "one training run" if seeds == 1 else f"{seeds} training runs"
    return f"{said}. That rests on {runs} a value; the intervals are over the items alone"


def _shown(value: float, swept: Swept) -> str:
    return f"{100 * value:g} %" if swept.share else f"{value:g}"
