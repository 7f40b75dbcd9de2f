"""What arms gained and what they forgot, as points of a plane."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from harness.report.html.plots.svg_canvas import (
    PLACEHOLDER_COLORS,
    PLOT_WIDTH,
    TEXT_SIZE,
    Plot,
    axis_limits,
    finish_plot,
    open_canvas,
    plot_label,
)
from harness.report.recommendation import ArmPoint
from harness.statistics.intervals import Estimate
from harness.utils.formatting import format_number

PLOT_HEIGHT = 320.0
LABEL_OFFSETS = ((9, 10), (9, -10), (-9, 10), (-9, -10), (0, 16), (0, -16), (9, 24), (9, -24), (-9, 24), (-9, -24))
"""Where the name of a point may stand: the nearest edge of its text, or its middle, from the point on, in pixels."""
CHAR_WIDTH = 0.56
"""Mean width of a letter, as a share of the size of the text."""


def plot_gain_vs_forgetting(
    points: Sequence[ArmPoint],
    gain_score: str,
    forgetting_score: str,
    baseline: str,
    name: str,
    *,
    joint_arm: str | None = None,
) -> Plot:
    """Gain upwards against forgetting to the right, each with its 95 % interval.

    Filled: no other arm gains as much and forgets less. A square is the baseline, a diamond the joint arm.
    """
    with open_canvas(PLOT_WIDTH, PLOT_HEIGHT) as drawing:
        (axes,) = drawing.add_axes()
        axes.grid(axis="x", color=PLACEHOLDER_COLORS["line"], linewidth=0.7)
        for place, point in enumerate(points):
            main = PLACEHOLDER_COLORS["series-1" if point.efficient else "muted"]
            x, y = point.forgotten.value, point.gain.value
            axes.errorbar(
                x, y, xerr=error_bar_lengths(point.forgotten), yerr=error_bar_lengths(point.gain), fmt="none", ecolor=main, elinewidth=1.1,
                alpha=0.55,
            )  # fmt: skip
            shape = "D" if point.arm == joint_arm else "s" if point.arm == baseline else "o"
            (mark,) = axes.plot(
                x, y, marker=shape, markersize=8, color=main,
                markerfacecolor=main if point.efficient else PLACEHOLDER_COLORS["surface"], markeredgewidth=1.6,
            )  # fmt: skip
            told = f"{plot_label(point.arm)}: gain {format_estimate(point.gain)}, forgotten {format_estimate(point.forgotten)}"
            drawing.add_tooltip(mark, f"point-{place}", told)
        axes.set_xlim(*axis_limits([*finite_bounds(one.forgotten for one in points), 0.0], 0.1))
        axes.set_ylim(*axis_limits([*finite_bounds(one.gain for one in points), 0.0], 0.1))
        for line in (axes.axhline, axes.axvline):
            line(0, color=PLACEHOLDER_COLORS["muted"], linewidth=0.9)
        axes.locator_params(axis="x", nbins=6)
        axes.set_title(f"↑ gain in {plot_label(gain_score, 44)}", loc="left", color=PLACEHOLDER_COLORS["muted"])
        axes.set_xlabel(f"forgotten in {plot_label(forgetting_score, 40)} →", loc="right")
        drawing.figure.draw_without_rendering()  # so that the axes know their place
        _label_points(axes, points)
        told = "; ".join(
            f"{plot_label(p.arm)} gains {format_number(p.gain.value)}, forgets {format_number(p.forgotten.value)}"
            for p in points
        )
        return finish_plot(
            drawing, name, "Gain against forgetting, one point an arm", f"{told}. Up and left is better."
        )


def _label_points(axes: Any, points: Sequence[ArmPoint]) -> None:
    """Write each arm's name where it hides the fewest other things; all places are tried in turn."""
    size = TEXT_SIZE - 0.5
    area = axes.get_window_extent().extents
    marks = [axes.transData.transform((one.forgotten.value, one.gain.value)) for one in points]
    taken = [(x - 6, y - 6, x + 6, y + 6) for x, y in marks]
    for one in points:
        taken += _error_bar_boxes(axes, one)
    for point, at in zip(points, marks, strict=True):
        x, y = at
        if not (math.isfinite(x) and math.isfinite(y)):
            continue
        name = plot_label(point.arm, 26)
        wide = CHAR_WIDTH * size * len(name)
        boxes = []
        for dx, dy in LABEL_OFFSETS:
            left = x + dx - (wide if dx < 0 else 0 if dx else wide / 2)
            boxes.append((left, y + dy - size / 2, left + wide, y + dy + size / 2))
        others = [mark for mark in marks if mark is not at]
        best = min(
            boxes,
            key=lambda box: (
                _overlap_area(box, taken) + _outside_penalty(box, area) + _ambiguity_penalty(box, at, others)
            ),
        )
        taken.append(best)
        axes.annotate(
            name, (best[0], best[1]), xycoords="figure pixels", fontsize=size, va="bottom", annotation_clip=False
        )


def _error_bar_boxes(axes: Any, point: ArmPoint) -> Iterator[tuple[float, float, float, float]]:
    """What the error bars of a point cover, in pixels; nothing for one without an interval."""
    x, y = point.forgotten, point.gain
    for low, high in (((x.low, y.value), (x.high, y.value)), ((x.value, y.low), (x.value, y.high))):
        if all(map(math.isfinite, (*low, *high))):
            (left, bottom), (right, top) = axes.transData.transform([low, high])
            yield left - 1, bottom - 1, right + 1, top + 1


def _overlap_area(box: tuple[float, ...], others: Sequence[tuple[float, ...]]) -> float:
    return sum(
        max(0.0, min(box[2], one[2]) - max(box[0], one[0])) * max(0.0, min(box[3], one[3]) - max(box[1], one[1]))
        for one in others
    )


def _outside_penalty(box: tuple[float, ...], area: Sequence[float]) -> float:
    left, low, right, high = area
    return 48 * sum(max(0.0, one) for one in (left - box[0], low - box[1], box[2] - right, box[3] - high))


def _ambiguity_penalty(
    box: Sequence[float], own_mark: Sequence[float], other_marks: Sequence[Sequence[float]]
) -> float:
    """How far a name is from its own mark, and whether it could be taken for that of another."""

    def far(mark: Sequence[float]) -> float:
        return math.hypot(
            max(box[0] - mark[0], 0.0, mark[0] - box[2]), max(box[1] - mark[1], 0.0, mark[1] - box[3])
        )  # fmt: skip

    return far(own_mark) + 8 * sum(max(0.0, 1.5 * far(own_mark) - far(one)) for one in other_marks)


def error_bar_lengths(estimate: Estimate) -> Any:
    """The arms of an error bar; none where there is no interval."""
    if not (math.isfinite(estimate.low) and math.isfinite(estimate.high)):
        return None
    return [[max(0.0, estimate.value - estimate.low)], [max(0.0, estimate.high - estimate.value)]]


def finite_bounds(estimates: Iterable[Estimate]) -> list[float]:
    """The finite values and ends of intervals, which an axis has to hold."""
    return [v for one in estimates for v in (one.low, one.value, one.high) if math.isfinite(v)]


def format_estimate(estimate: Estimate) -> str:
    """A value with its interval, for a pointer."""
    return f"{format_number(estimate.value, sign=True)} [{format_number(estimate.low, sign=True)}, {format_number(estimate.high, sign=True)}]"
