"""What arms gained and what they forgot: as points of a plane, and as curves over what they differ in."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from harness.intervals import Estimate
from harness.legible import number
from harness.report.arms import Point
from harness.report.html.plots.canvas import STAND_INS, TEXT, WIDTH, Plot, finish, label, sheet, spread

HEIGHT = 320.0
PLACES = ((9, 10), (9, -10), (-9, 10), (-9, -10), (0, 16), (0, -16), (9, 24), (9, -24), (-9, 24), (-9, -24))
"""Where the name of a point may stand: the nearest edge of its text, or its middle, from the point on, in pixels."""
LETTER = 0.56
"""Mean width of a letter, as a share of the size of the text."""
SPREAD = 20.0
"""How many times the smallest value above 0 the largest must be for a logarithmic axis."""
ROOM = 0.075
"""What the name of a value takes of the axis."""


def scatter(
    points: Sequence[Point], gain: str, lost: str, baseline: str, name: str, *, joint: str | None = None
) -> Plot:
    """Gain upwards against forgetting to the right, each with its 95 % interval.

    Filled: no other arm gains as much and forgets less. A square is the baseline, a diamond the joint arm.
    """
    with sheet(WIDTH, HEIGHT) as drawing:
        (axes,) = drawing.axes()
        axes.grid(axis="x", color=STAND_INS["line"], linewidth=0.7)
        for place, point in enumerate(points):
            main = STAND_INS["series-1" if point.efficient else "muted"]
            x, y = point.forgotten.value, point.gain.value
            axes.errorbar(
                x, y, xerr=_reach(point.forgotten), yerr=_reach(point.gain), fmt="none", ecolor=main, elinewidth=1.1,
                alpha=0.55,
            )  # fmt: skip
            shape = "D" if point.arm == joint else "s" if point.arm == baseline else "o"
            (mark,) = axes.plot(
                x, y, marker=shape, markersize=8, color=main,
                markerfacecolor=main if point.efficient else STAND_INS["surface"], markeredgewidth=1.6,
            )  # fmt: skip
            told = f"{label(point.arm)}: gain {_interval(point.gain)}, forgotten {_interval(point.forgotten)}"
            drawing.say(mark, f"point-{place}", told)
        axes.set_xlim(*spread([*_bounds(one.forgotten for one in points), 0.0], 0.1))
        axes.set_ylim(*spread([*_bounds(one.gain for one in points), 0.0], 0.1))
        for line in (axes.axhline, axes.axvline):
            line(0, color=STAND_INS["muted"], linewidth=0.9)
        axes.locator_params(axis="x", nbins=6)
        axes.set_title(f"↑ gain in {label(gain, 44)}", loc="left", color=STAND_INS["muted"])
        axes.set_xlabel(f"forgotten in {label(lost, 40)} →", loc="right")
        drawing.figure.draw_without_rendering()  # so that the axes know their place
        _name_points(axes, points)
        told = "; ".join(
            f"{label(p.arm)} gains {number(p.gain.value)}, forgets {number(p.forgotten.value)}" for p in points
        )
        return finish(drawing, name, "Gain against forgetting, one point an arm", f"{told}. Up and left is better.")


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
                    places[value], one.value, yerr=_reach(one), color=STAND_INS[main],
                    marker="o" if side == "gain" else "D", markersize=5.5, elinewidth=1.2, capsize=3, linestyle="none",
                )  # fmt: skip
                drawing.say(bars.lines[0], f"{side}-{number_}", f"{label(arm)}: {_interval(one)}")
            axes.axhline(0, color=STAND_INS["muted"], linewidth=0.9)
            axes.set_title(title, loc="left", color=STAND_INS["muted"])
            levels = [(getattr(one, side), one.arm) for one in beside]
            for number_, (one, arm) in enumerate(levels):
                drawing.say(_level(axes, one.value, arm), f"{side}-beside-{number_}", f"{label(arm)}: {_interval(one)}")
            axes.set_ylim(*spread([*_bounds([one for _, one, _ in found] + [one for one, _ in levels]), 0.0], 0.08))
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


def _level(axes: Any, value: float, name: str) -> Any:
    """A level line of an arm that has no place along the axis, with its name at the right end."""
    if math.isfinite(value):
        axes.annotate(
            label(name, 26), (1.0, value), xycoords=("axes fraction", "data"), xytext=(0, 2),
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


def _name_points(axes: Any, points: Sequence[Point]) -> None:
    """Write each arm's name where it hides the fewest other things; all places are tried in turn."""
    size = TEXT - 0.5
    area = axes.get_window_extent().extents
    marks = [axes.transData.transform((one.forgotten.value, one.gain.value)) for one in points]
    taken = [(x - 6, y - 6, x + 6, y + 6) for x, y in marks]
    for one in points:
        taken += _bars(axes, one)
    for point, (x, y) in zip(points, marks, strict=True):
        if not (math.isfinite(x) and math.isfinite(y)):
            continue
        name = label(point.arm, 26)
        wide = LETTER * size * len(name)
        boxes = []
        for dx, dy in PLACES:
            left = x + dx - (wide if dx < 0 else 0 if dx else wide / 2)
            boxes.append((left, y + dy - size / 2, left + wide, y + dy + size / 2))
        best = min(boxes, key=lambda box: _hidden(box, taken) + _outside(box, area))
        taken.append(best)
        axes.annotate(
            name, (best[0], best[1]), xycoords="figure pixels", fontsize=size, va="bottom", annotation_clip=False
        )


def _bars(axes: Any, point: Point) -> Iterator[tuple[float, float, float, float]]:
    """What the error bars of a point cover, in pixels; nothing for one without an interval."""
    x, y = point.forgotten, point.gain
    for low, high in (((x.low, y.value), (x.high, y.value)), ((x.value, y.low), (x.value, y.high))):
        if all(map(math.isfinite, (*low, *high))):
            (left, bottom), (right, top) = axes.transData.transform([low, high])
            yield left - 1, bottom - 1, right + 1, top + 1


def _hidden(box: tuple[float, ...], others: Sequence[tuple[float, ...]]) -> float:
    return sum(
        max(0.0, min(box[2], one[2]) - max(box[0], one[0])) * max(0.0, min(box[3], one[3]) - max(box[1], one[1]))
        for one in others
    )


def _outside(box: tuple[float, ...], area: Sequence[float]) -> float:
    left, low, right, high = area
    return 48 * sum(max(0.0, one) for one in (left - box[0], low - box[1], box[2] - right, box[3] - high))


def _reach(estimate: Estimate) -> Any:
    """The arms of an error bar; none where there is no interval."""
    if not (math.isfinite(estimate.low) and math.isfinite(estimate.high)):
        return None
    return [[max(0.0, estimate.value - estimate.low)], [max(0.0, estimate.high - estimate.value)]]


def _bounds(estimates: Any) -> list[float]:
    return [v for one in estimates for v in (one.low, one.value, one.high) if math.isfinite(v)]


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def _interval(one: Estimate) -> str:
    return f"{number(one.value, sign=True)} [{number(one.low, sign=True)}, {number(one.high, sign=True)}]"
