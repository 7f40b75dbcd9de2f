"""What arms gained and what they forgot, as points of a plane."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from harness.report.html.plots.svg_canvas import STAND_INS, TEXT, WIDTH, Plot, finish, label, sheet, spread
from harness.report.recommendation import Point
from harness.statistics.intervals import Estimate
from harness.utils.formatting import number

HEIGHT = 320.0
PLACES = ((9, 10), (9, -10), (-9, 10), (-9, -10), (0, 16), (0, -16), (9, 24), (9, -24), (-9, 24), (-9, -24))
"""Where the name of a point may stand: the nearest edge of its text, or its middle, from the point on, in pixels."""
LETTER = 0.56
"""Mean width of a letter, as a share of the size of the text."""


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
                x, y, xerr=reach(point.forgotten), yerr=reach(point.gain), fmt="none", ecolor=main, elinewidth=1.1,
                alpha=0.55,
            )  # fmt: skip
            shape = "D" if point.arm == joint else "s" if point.arm == baseline else "o"
            (mark,) = axes.plot(
                x, y, marker=shape, markersize=8, color=main,
                markerfacecolor=main if point.efficient else STAND_INS["surface"], markeredgewidth=1.6,
            )  # fmt: skip
            told = f"{label(point.arm)}: gain {interval(point.gain)}, forgotten {interval(point.forgotten)}"
            drawing.say(mark, f"point-{place}", told)
        axes.set_xlim(*spread([*bounds(one.forgotten for one in points), 0.0], 0.1))
        axes.set_ylim(*spread([*bounds(one.gain for one in points), 0.0], 0.1))
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


def _name_points(axes: Any, points: Sequence[Point]) -> None:
    """Write each arm's name where it hides the fewest other things; all places are tried in turn."""
    size = TEXT - 0.5
    area = axes.get_window_extent().extents
    marks = [axes.transData.transform((one.forgotten.value, one.gain.value)) for one in points]
    taken = [(x - 6, y - 6, x + 6, y + 6) for x, y in marks]
    for one in points:
        taken += _bars(axes, one)
    for point, at in zip(points, marks, strict=True):
        x, y = at
        if not (math.isfinite(x) and math.isfinite(y)):
            continue
        name = label(point.arm, 26)
        wide = LETTER * size * len(name)
        boxes = []
        for dx, dy in PLACES:
            left = x + dx - (wide if dx < 0 else 0 if dx else wide / 2)
            boxes.append((left, y + dy - size / 2, left + wide, y + dy + size / 2))
        others = [mark for mark in marks if mark is not at]
        best = min(boxes, key=lambda box: _hidden(box, taken) + _outside(box, area) + _mistaken(box, at, others))
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


def _mistaken(box: Sequence[float], own: Sequence[float], others: Sequence[Sequence[float]]) -> float:
    """How far a name is from its own mark, and whether it could be taken for that of another."""

    def far(mark: Sequence[float]) -> float:
        return math.hypot(
            max(box[0] - mark[0], 0.0, mark[0] - box[2]), max(box[1] - mark[1], 0.0, mark[1] - box[3])
        )  # fmt: skip

    return far(own) + 8 * sum(max(0.0, 1.5 * far(own) - far(one)) for one in others)


def reach(estimate: Estimate) -> Any:
    """The arms of an error bar; none where there is no interval."""
    if not (math.isfinite(estimate.low) and math.isfinite(estimate.high)):
        return None
    return [[max(0.0, estimate.value - estimate.low)], [max(0.0, estimate.high - estimate.value)]]


def bounds(estimates: Iterable[Estimate]) -> list[float]:
    """The finite values and ends of intervals, which an axis has to hold."""
    return [v for one in estimates for v in (one.low, one.value, one.high) if math.isfinite(v)]


def interval(one: Estimate) -> str:
    """A value with its interval, for a pointer."""
    return f"{number(one.value, sign=True)} [{number(one.low, sign=True)}, {number(one.high, sign=True)}]"
