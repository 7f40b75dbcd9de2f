"""What a person can take from the points of an experiment, and how sure it is.

Knows points and their intervals, and the one number that arms may have been swept over. Knows no run.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from harness.report.run_report import FEWEST
from harness.statistics.intervals import Estimate
from harness.utils.formatting import number

if TYPE_CHECKING:
    from harness.report.spec_diff import Swept

More = Callable[["Point", "Point"], Estimate]
"""How much more the first point's arm forgets than the second's, with its 95 % interval."""


@dataclass(frozen=True)
class Advice:
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
    def text(self) -> str:
        """All of it in sentences, the last without its full stop."""
        told = f"{self.note}; {self.headline}" if self.note else self.headline
        told += f" ({self.cost})" if self.cost else ""
        told += f"; {self.inseparable}" if self.alike else ""
        return ". ".join(one for one in (told, self.enough, self.rests) if one)

    @property
    def inseparable(self) -> str:
        """The arms that cannot be told from the recommended one, in a clause; empty where there are none."""
        return f"{', '.join(self.alike)} cannot be told from it" if self.alike else ""


def apart(one: Point, other: Point) -> Estimate:
    """one's forgetting less other's as if their items had nothing in common.

    Wider than an interval over the same items wherever these move together, so it never tells apart too much.
    """
    gap = one.forgotten.value - other.forgotten.value
    stderr = (one.forgotten.stderr**2 + other.forgotten.stderr**2) ** 0.5
    return Estimate(gap, stderr, gap - 1.96 * stderr, gap + 1.96 * stderr, min(one.forgotten.n, other.forgotten.n))


def advise(
    points: Sequence[Point],
    gain: str,
    lost: str,
    swept: Swept | None = None,
    *,
    more: More | None = None,
    note: str = "",
) -> Advice:
    """What can be recommended.

    Of the arms that gain beyond doubt and whose gain is not clearly below the best one's, the one that forgets least;
    others whose forgetting cannot be told from its are named with it. swept: the one number that the arms differ in;
    then it is also said which of its values is enough. more: see `More`; None: `apart`. note: see `Advice`.
    """
    known = [one for one in points if not math.isnan(one.forgotten.value)]
    learned = [one for one in known if one.gain.low > 0 and one.gain.n >= FEWEST]
    if not learned and points and all(one.gain.n < FEWEST for one in points):
        return Advice(f"{gain} has fewer than {FEWEST} items, which is too few to recommend an arm", note)
    if not learned:
        return Advice(f"no arm gains in {gain} beyond doubt, so none can be recommended", note)
    best = max(learned, key=lambda one: one.gain.value)
    as_good = [one for one in learned if one.gain.high >= best.gain.low]
    first = min(as_good, key=lambda one: one.forgotten.value)
    gap = more or apart
    if all(moved(one.forgotten) == "better" for one in as_good):
        headline = f"no arm that gains about as much as the best forgets in {lost}; {first.arm!r} ends best in it"
    else:
        headline = f"of the arms that gain about as much as the best, {first.arm!r} forgets least in {lost}"
    made = Advice(
        headline,
        note,
        _cost(first.forgotten),
        # An interval that is no number tells nothing apart.
        tuple(one.arm for one in as_good if one.arm != first.arm and not gap(one, first).low > 0),
        arm=first.arm,
    )
    placed = [] if swept is None else [one for one in as_good if one.arm in swept.values]
    return made if swept is None or not placed else enough(made, placed, lost, swept, gap)


def moved(rise: Estimate) -> Literal["few", "worse", "better", "even"]:
    """What an arm's forgetting and its interval come to."""
    if not rise.n >= FEWEST or math.isnan(rise.low):
        return "few"
    return "worse" if rise.low > 0 else "better" if rise.high < 0 else "even"


def _cost(rise: Estimate) -> str:
    kind = moved(rise)
    if kind == "few":
        return f"{number(rise.value, sign=True)} over n = {rise.n}, too few items to tell"
    if kind == "worse":
        return f"it forgets {_digits(rise.value)} [{_digits(rise.low)}, {_digits(rise.high)}]"
    if kind == "better":
        return f"it got better by {_digits(-rise.value)} [{_digits(-rise.high)}, {_digits(-rise.low)}]"
    return f"no evidence of forgetting [{_digits(rise.low)}, {_digits(rise.high)}]"


def _digits(value: float) -> str:
    return f"{value:.3g}".replace("-", "−")


def enough(made: Advice, points: Sequence[Point], lost: str, swept: Swept, more: More) -> Advice:
    """The advice with the smallest value whose forgetting cannot be told from the least, and how far that goes.

    Where nothing is forgotten with any of them the smallest is enough, and it is said what more of it is good for.

    points: those to choose from, each with a value, one at least. A value with several arms (seeds) is enough when
    every one of them cannot be told from the arm that forgets least; it may be that none is.
    """
    first = min(points, key=lambda one: one.forgotten.value)
    by_value: dict[float, list[Point]] = {}
    for one in points:
        by_value.setdefault(swept.values[one.arm], []).append(one)
    gaps = {
        value: [more(one, first) for one in arms if one.arm != first.arm] for value, arms in sorted(by_value.items())
    }
    # An interval that is no number tells nothing apart.
    value = next((value for value, found in gaps.items() if not any(gap.low > 0 for gap in found)), None)
    least = swept.values[first.arm]
    name = "" if value is None else f"{swept.key} of {swept.shown(value)}"
    if value is None:
        said = (
            f"No {swept.key} is enough for certain: at every value some training run forgets more in {lost} beyond "
            f"doubt than {first.arm!r}, which forgets least, at {swept.shown(least)}"
        )
    elif value == least:
        more_of = "forgets more" if len(points) == len(by_value) else "has a training run that forgets more"
        if any(one < value for one in by_value):
            beyond = f"every smaller one that gains as much {more_of} beyond doubt"
        elif any(one < value for one in swept.values.values()):
            beyond = "no smaller one gains as much"
        else:
            beyond = "and none is smaller"
        said = f"{name} is where {lost} suffers least; {beyond}"
    else:
        gap = max(gaps[value], key=lambda one: one.value)
        said = (
            f"The smallest that cannot be told from the least forgetting in {lost} is {name}: it forgets "
            f"{number(gap.value)} [{number(gap.low, sign=True)}, {number(gap.high, sign=True)}] more than "
            f"{swept.shown(least)}"
        )
    if all(moved(one.forgotten) == "better" for one in points):
        said, value = _unneeded(lost, swept, sorted(by_value), value, least)
    seeds = min(len(arms) for arms in by_value.values())
    runs = "one training run" if seeds == 1 else f"{seeds} training runs"
    rests = f"That rests on {runs} a value; the intervals are over the items alone"
    return replace(made, enough=said, rests=rests, value=value)


def _unneeded(lost: str, swept: Swept, values: Sequence[float], alike: float | None, least: float) -> tuple[str, float]:
    """What is said where nothing is forgotten, and the value that is enough: the smallest.

    values: ascending. least: with which it ends best; alike: the smallest that cannot be told from it, None: see above.
    """
    said = f"Nothing is forgotten in {lost} with any {swept.key}: it got better even with {swept.shown(values[0])}"
    if alike == values[0]:
        return f"{said}, and no other ends beyond doubt better", values[0]
    said += f"; it ends best with {swept.shown(least)}"
    if alike == least:
        said += ", beyond doubt better than with less"
    elif alike is not None:
        said += f", from which {swept.shown(alike)} cannot be told"
    return said, values[0]


@dataclass(frozen=True)
class Point:
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
