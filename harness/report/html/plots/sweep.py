"""What arms gained and what they forgot, as curves over the one number that they differ in."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from harness.report.html.plots.gain_vs_forgetting import LETTER, bounds, interval, reach
from harness.report.html.plots.svg_canvas import STAND_INS, TEXT, WIDTH, Plot, finish, label, sheet, spread
from harness.report.recommendation import Point
from harness.utils.formatting import number

SPREAD = 20.0
"""How many times the smallest value above 0 the largest must be for a logarithmic axis."""
ROOM = 0.075
"""What the name of a value takes of the axis."""


def sweep(
    points: Sequence[tuple[float, Point]],
    gain: str,
    lost: str,
    key: str,
    name: str,
    *,
    percent: bool = False,
    advised: float | None = None,
    beside: Sequence[Point] = (),
) -> Plot:
    """Gain (above) and forgetting (below) over the value of the one key that the arms differ in, with intervals.

    points: (value of the key, arm). Arms of one value (seeds) are drawn each, and the line goes through their mean.
    advised: the value that is enough, marked by an upright line. beside: arms without a value, each a level line.
    Values from 0 up whose largest is `SPREAD` times the smallest above 0 stand on a logarithmic axis, and 0 apart.
    """
    with sheet(WIDTH, 360) as drawing:
        panels = drawing.axes(2, sharex=True)
        places, logarithmic = _places(sorted({value for value, _ in points}))
        sides = (
            ("gain", f"gain in {label(gain, 46)}", "gain"),
            ("forgotten", f"forgotten in {label(lost, 42)}", "loss"),
        )
        for axes, (side, title, main) in zip(panels, sides, strict=True):
            found = [(value, getattr(point, side), point.arm) for value, point in points]
            means = [_mean([one.value for at, one, _ in found if at == value]) for value in places]
            axes.plot(
                list(places.values()), means, color=STAND_INS[main], linewidth=1.6,
                linestyle="-" if side == "gain" else "--",
            )  # fmt: skip
            for number_, (value, one, arm) in enumerate(found):
                bars = axes.errorbar(
                    places[value], one.value, yerr=reach(one), color=STAND_INS[main],
                    marker="o" if side == "gain" else "D", markersize=5.5, elinewidth=1.2, capsize=3, linestyle="none",
                )  # fmt: skip
                drawing.say(bars.lines[0], f"{side}-{number_}", f"{label(arm)}: {interval(one)}")
            axes.axhline(0, color=STAND_INS["muted"], linewidth=0.9)
            axes.set_title(title, loc="left", color=STAND_INS["muted"])
            levels = [(getattr(one, side), one.arm) for one in beside]
            taken = 0.0
            for number_, (one, arm) in enumerate(levels):
                drawing.say(
                    _level(axes, one.value, arm, taken), f"{side}-beside-{number_}", f"{label(arm)}: {interval(one)}"
                )
                taken += LETTER * TEXT * (len(label(arm, 26)) + 1)
            axes.set_ylim(*spread([*bounds([one for _, one, _ in found] + [one for one, _ in levels]), 0.0], 0.08))
        if advised in places:
            told = f"enough: {_shown(advised, percent)}"
            _upright(panels, places[advised], told, right=places[advised] < math.fsum(places.values()) / len(places))
        if logarithmic:
            _broken(panels[-1], list(places.items()))
        _ticks(panels[-1], places, percent)
        panels[-1].set_xlabel(label(key, 50) + (", logarithmic" if logarithmic else ""), loc="right")
        told = "; ".join(
            f"{label(p.arm)}: gain {number(p.gain.value)}, forgotten {number(p.forgotten.value)}"
            for p in [*(p for _, p in points), *beside]
        )
        more = f" {_shown(advised, percent)} is enough." if advised in places else ""
        return finish(drawing, name, f"Gain and forgetting over {label(key)}", f"{told}.{more}")


def _places(values: Sequence[float]) -> tuple[dict[float, float], bool]:
    """Where each value stands along the axis, and whether that is by its logarithm. values: in order."""
    above = [one for one in values if one > 0]
    if values[0] < 0 or len(above) < 2 or above[-1] / above[0] < SPREAD:
        return {one: one for one in values}, False
    made = {one: math.log10(one) for one in above}
    step = (made[above[-1]] - made[above[0]]) / (len(above) - 1)
    return {one: made.get(one, made[above[0]] - step) for one in values}, True


def _broken(axes: Any, places: Sequence[tuple[float, float]]) -> None:
    """The sign of a broken axis between 0, which has no logarithm, and the value after it."""
    if places[0][0] == 0:
        middle = (places[0][1] + places[1][1]) / 2
        axes.annotate(
            "//", (middle, 0.0), xycoords=("data", "axes fraction"), ha="center", va="center", fontsize=TEXT,
            color=STAND_INS["muted"], annotation_clip=False,
        )  # fmt: skip


def _upright(panels: Sequence[Any], at: float, text: str, *, right: bool) -> None:
    """A line through all panels with a word beside it, on its right or its left."""
    for axes in panels:
        axes.axvline(at, color=STAND_INS["ink"], linewidth=1.1, linestyle=(0, (4, 2)), zorder=1)
    panels[0].annotate(
        text, (at, 0.0), xycoords=("data", "axes fraction"), xytext=(5 if right else -5, 12),
        textcoords="offset points", ha="left" if right else "right", va="bottom", fontsize=TEXT - 1,
        bbox={"boxstyle": "round,pad=0.15", "fc": STAND_INS["surface"], "ec": "none", "alpha": 0.8},
    )  # fmt: skip


def _level(axes: Any, value: float, name: str, taken: float) -> Any:
    """A level line of an arm that has no place along the axis, with its name at the right end.

    taken: pixels from there that names of others have, whose lines may be near.
    """
    if math.isfinite(value):
        axes.annotate(
            label(name, 26), (1.0, value), xycoords=("axes fraction", "data"), xytext=(-taken, 2),
            textcoords="offset points", ha="right", va="bottom", fontsize=TEXT - 1, color=STAND_INS["muted"],
        )  # fmt: skip
    return axes.axhline(value, color=STAND_INS["muted"], linewidth=1.1, linestyle=(0, (1, 2)))


def _ticks(axes: Any, places: Mapping[float, float], percent: bool) -> None:
    """A mark at each value that has room for its name; the last one always has."""
    span = (max(places.values()) - min(places.values())) or 1.0
    shown: list[float] = []
    for value in places:
        last = value == max(places)
        if shown and (places[value] - places[shown[-1]]) / span <= ROOM:
            if not last:
                continue
            shown.pop()
        shown.append(value)
    axes.set_xticks([places[one] for one in shown], [_shown(one, percent) for one in shown])


def _shown(value: float, percent: bool) -> str:
    return f"{100 * value:g} %" if percent else f"{value:g}"


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)
