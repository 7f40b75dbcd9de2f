"""Gain against forgetting: one point per arm."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from harness.report.display_text import format_interval
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
NEAR_OFFSETS = ((9, 10), (9, -10), (-9, 10), (-9, -10), (0, 16), (0, -16), (9, 24), (9, -24), (-9, 24), (-9, -24))
FAR_OFFSETS = tuple((dx, dy) for dy in (40, -40, 56, -56, 72, -72) for dx in (24, -24, 48, -48))
LABEL_OFFSETS = (*NEAR_OFFSETS, *FAR_OFFSETS)
"""Candidate positions of a label: offset of its nearest edge, or of its middle, from the point, in pixels."""
MAX_AMBIGUITY = 60.0
"""Largest cost of other marks near a label, in pixels: more is not worse, since a line connects it and its own mark."""
LINE_DISTANCE_RATIO = 2.0
"""A line connects a label and its mark if another mark is less than so many times as far from the label."""
CROSSING_COST = 200.0
"""Cost of a line that crosses another mark or label, and of a label that covers a line or label."""
CHAR_WIDTH = 0.56
"""Mean width of a letter, as a fraction of the text size."""
MARK_RADIUS = 6

Box = tuple[float, float, float, float]
"""Left, bottom, right and top in pixels."""


def plot_gain_vs_forgetting(
    points: Sequence[ArmPoint],
    gain_score: str,
    forgetting_score: str,
    baseline: str,
    name: str,
    *,
    joint_arm: str | None = None,
) -> Plot:
    """Plot gain (up) against forgetting (right), each with its 95 % interval.

    A point is filled if no other arm gains as much and forgets less. The baseline is a square, the joint arm a diamond.
    Of an arm with several seeds, each seed is a small dot.

    Args:
        points: The arms.
        gain_score: Score of the gain, as `suite/score`.
        forgetting_score: Score of the forgetting, as `suite/score`.
        baseline: Name of the baseline.
        name: File name of the plot.
        joint_arm: Name of the arm that was trained on all tasks together.
    """
    with open_canvas(PLOT_WIDTH, PLOT_HEIGHT) as canvas:
        (axes,) = canvas.add_axes()
        axes.grid(axis="x", color=PLACEHOLDER_COLORS["line"], linewidth=0.7)
        for index, point in enumerate(points):
            color = PLACEHOLDER_COLORS["series-1" if point.efficient else "muted"]
            x, y = point.forgotten.value, point.gain.value
            axes.errorbar(
                x,
                y,
                xerr=error_bar_lengths(point.forgotten),
                yerr=error_bar_lengths(point.gain),
                fmt="none",
                ecolor=color,
                elinewidth=1.1,
                alpha=0.55,
            )
            if point.gain_spread is not None and point.forgotten_spread is not None:
                seeds = point.forgotten_spread.values, point.gain_spread.values
                axes.plot(*seeds, marker="o", markersize=3, color=color, alpha=0.6, linestyle="none")
            (mark,) = axes.plot(
                x,
                y,
                marker="D" if point.arm == joint_arm else "s" if point.arm == baseline else "o",
                markersize=8,
                color=color,
                markerfacecolor=color if point.efficient else PLACEHOLDER_COLORS["surface"],
                markeredgewidth=1.6,
            )
            gain, forgotten = format_tooltip(point.gain), format_tooltip(point.forgotten)
            canvas.add_tooltip(mark, f"point-{index}", f"{plot_label(point.arm)}: gain {gain}, forgotten {forgotten}")
        for set_limits, quantity, included in ((axes.set_xlim, "forgotten", [0.0]), (axes.set_ylim, "gain", [])):
            bounds = finite_bounds(getattr(point, quantity) for point in points)
            set_limits(*axis_limits([*bounds, *seed_values(points, quantity), *included], 0.1))
        for draw_line, (low, high) in ((axes.axhline, axes.get_ylim()), (axes.axvline, axes.get_xlim())):
            if low <= 0 <= high:
                draw_line(0, color=PLACEHOLDER_COLORS["muted"], linewidth=0.9)
        axes.locator_params(axis="x", nbins=6)
        axes.set_title(f"↑ gain in {plot_label(gain_score, 44)}", loc="left", color=PLACEHOLDER_COLORS["muted"])
        axes.set_xlabel(f"forgotten in {plot_label(forgetting_score, 40)} →", loc="right")
        canvas.figure.draw_without_rendering()  # computes the position of the axes
        _label_points(axes, points)
        summary = "; ".join(
            f"{plot_label(point.arm)} gains {format_number(point.gain.value)}, "
            f"forgets {format_number(point.forgotten.value)}"
            for point in points
        )
        title = "Gain against forgetting, one point per arm"
        return finish_plot(canvas, name, title, f"{summary}. Up and left is better.")


def error_bar_lengths(estimate: Estimate) -> Any:
    """Return the lengths of an error bar below and above the value; None without an interval."""
    if not (math.isfinite(estimate.low) and math.isfinite(estimate.high)):
        return None
    return [[max(0.0, estimate.value - estimate.low)], [max(0.0, estimate.high - estimate.value)]]


def finite_bounds(estimates: Iterable[Estimate]) -> list[float]:
    """Return the finite values and interval bounds, which an axis must include."""
    bounds = (bound for estimate in estimates for bound in (estimate.low, estimate.value, estimate.high))
    return [bound for bound in bounds if math.isfinite(bound)]


def seed_values(points: Iterable[ArmPoint], quantity: str) -> list[float]:
    """Return the finite values of all seeds of arms with several. quantity: `gain` or `forgotten`."""
    spreads = [getattr(point, f"{quantity}_spread") for point in points]
    return [value for spread in spreads if spread is not None for value in spread.values if math.isfinite(value)]


def format_tooltip(estimate: Estimate) -> str:
    """Format a value with its interval."""
    return " ".join(format_interval(estimate, digits=4))


def _label_points(axes: Any, points: Sequence[ArmPoint]) -> None:
    """Write each arm's name at the candidate position that covers least and is closest to its own point.

    A line connects a name and its point if another point is about as close. It should cross no other point or name.
    """
    size = TEXT_SIZE - 0.5
    area = axes.get_window_extent().extents
    marks = [axes.transData.transform((point.forgotten.value, point.gain.value)) for point in points]
    occupied = [_mark_box(mark) for mark in marks]
    labels: list[Box] = []
    lines: list[Box] = []
    for point in points:
        occupied += _error_bar_boxes(axes, point)
    for point, mark in zip(points, marks, strict=True):
        x, y = mark
        if not (math.isfinite(x) and math.isfinite(y)):
            continue
        label = plot_label(point.arm, 26)
        width = CHAR_WIDTH * size * len(label)
        boxes = []
        for dx, dy in LABEL_OFFSETS:
            left = x + dx - (width if dx < 0 else 0 if dx else width / 2)
            boxes.append((left, y + dy - size / 2, left + width, y + dy + size / 2))
        other_marks = [other for other in marks if other is not mark]
        obstacles = [*map(_mark_box, other_marks), *labels]
        costs = [
            _overlap_area(box, occupied)
            + _outside_penalty(box, area)
            + _ambiguity_penalty(box, mark, other_marks)
            + CROSSING_COST * _count_crossings(_line_boxes(box, mark, other_marks), obstacles)
            + CROSSING_COST * _count_crossings([box], [*lines, *labels])
            for box in boxes
        ]
        best = boxes[costs.index(min(costs))]
        line = _line_boxes(best, mark, other_marks)
        labels.append(best)
        lines += line
        occupied += [best, *line]
        axes.annotate(label, best[:2], xycoords="figure pixels", fontsize=size, va="bottom", annotation_clip=False)
        if line:
            _connect(axes, best, mark)


def _mark_box(mark: Sequence[float]) -> Box:
    x, y = mark
    return (x - MARK_RADIUS, y - MARK_RADIUS, x + MARK_RADIUS, y + MARK_RADIUS)


def _nearest_point(box: Box, mark: Sequence[float]) -> tuple[float, float]:
    """Return the point of a label where its line begins."""
    return min(max(mark[0], box[0]), box[2]), min(max(mark[1], box[1]), box[3])


def _line_boxes(box: Box, mark: Sequence[float], other_marks: Sequence[Sequence[float]]) -> list[Box]:
    """Return small boxes along the line of a label and its mark, without its ends; none if it needs no line."""
    if all(_distance(box, other) >= LINE_DISTANCE_RATIO * _distance(box, mark) for other in other_marks):
        return []
    (x, y), (end_x, end_y) = _nearest_point(box, mark), mark
    count = max(2, round(math.hypot(end_x - x, end_y - y) / 3))
    at = [(x + (end_x - x) * part / count, y + (end_y - y) * part / count) for part in range(1, count)]
    return [(left - 1, bottom - 1, left + 1, bottom + 1) for left, bottom in at]


def _count_crossings(line: Sequence[Box], obstacles: Sequence[Box]) -> int:
    """Return the number of obstacles that a line crosses."""
    return sum(_overlap_area(obstacle, line) > 0 for obstacle in obstacles)


def _connect(axes: Any, box: Box, mark: Sequence[float]) -> None:
    """Draw a thin line from the nearest point of a label to the rim of its mark."""
    rim = MARK_RADIUS * 72 / axes.figure.dpi
    line = {"arrowstyle": "-", "color": PLACEHOLDER_COLORS["muted"], "linewidth": 0.7, "shrinkA": 0, "shrinkB": rim}
    start, pixels = _nearest_point(box, mark), "figure pixels"
    axes.annotate("", mark, start, pixels, pixels, arrowprops=line, annotation_clip=False)


def _error_bar_boxes(axes: Any, point: ArmPoint) -> Iterator[Box]:
    """Yield what the error bars of a point cover; nothing for one without an interval."""
    x, y = point.forgotten, point.gain
    for low, high in (((x.low, y.value), (x.high, y.value)), ((x.value, y.low), (x.value, y.high))):
        if all(map(math.isfinite, (*low, *high))):
            (left, bottom), (right, top) = axes.transData.transform([low, high])
            yield left - 1, bottom - 1, right + 1, top + 1


def _overlap_area(box: Box, others: Sequence[Box]) -> float:
    return sum(
        max(0.0, min(box[2], other[2]) - max(box[0], other[0]))
        * max(0.0, min(box[3], other[3]) - max(box[1], other[1]))
        for other in others
    )


def _outside_penalty(box: Box, area: Sequence[float]) -> float:
    left, bottom, right, top = area
    overshoots = (left - box[0], bottom - box[1], box[2] - right, box[3] - top)
    return 48 * sum(max(0.0, overshoot) for overshoot in overshoots)


def _ambiguity_penalty(box: Box, own_mark: Sequence[float], other_marks: Sequence[Sequence[float]]) -> float:
    """Return the distance of a label from its own mark, plus a penalty for each other mark that is nearly as close."""
    own_distance = _distance(box, own_mark)
    ambiguity = 8 * sum(max(0.0, 1.5 * own_distance - _distance(box, mark)) for mark in other_marks)
    return own_distance + min(ambiguity, MAX_AMBIGUITY)


def _distance(box: Box, mark: Sequence[float]) -> float:
    return math.hypot(max(box[0] - mark[0], 0.0, mark[0] - box[2]), max(box[1] - mark[1], 0.0, mark[1] - box[3]))
