"""Gain and forgetting of the arms over the one number in which they differ."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from harness.report.html.plots.gain_vs_forgetting import (
    CHAR_WIDTH,
    error_bar_lengths,
    finite_bounds,
    format_tooltip,
    seed_values,
)
from harness.report.html.plots.svg_canvas import (
    PLACEHOLDER_COLORS,
    PLOT_WIDTH,
    TEXT_SIZE,
    Canvas,
    Plot,
    add_label,
    axis_limits,
    finish_plot,
    open_canvas,
    plot_label,
)
from harness.report.recommendation import ArmPoint
from harness.utils.formatting import format_number

LOG_AXIS_MIN_RATIO = 20.0
"""The axis is logarithmic if the largest value is at least this many times the smallest value above 0."""
MIN_TICK_DISTANCE = 0.075
"""Smallest distance of two labeled ticks, as a fraction of the axis."""


@dataclass(frozen=True)
class SweepAxis:
    """The horizontal axis.

    Attributes:
        key: The swept spec key.
        percent: Whether its values are fractions, to be shown in percent.
        sufficient_value: The smallest sufficient value, marked by a vertical line.
    """

    key: str
    percent: bool = False
    sufficient_value: float | None = None


def plot_sweep(
    points: Sequence[tuple[float, ArmPoint]],
    gain_score: str,
    forgetting_score: str,
    axis: SweepAxis,
    name: str,
    *,
    reference_points: Sequence[ArmPoint] = (),
) -> Plot:
    """Plot gain (top) and forgetting (bottom) over the values of one spec key, with intervals.

    Arms with the same value are drawn each; the curve goes through their mean. Of an arm with several seeds, each seed
    is a small dot. See `LOG_AXIS_MIN_RATIO` for when the axis is logarithmic; the value 0 is then drawn apart.

    Args:
        points: (value of the key, arm).
        gain_score: Score of the gain, as `suite/score`.
        forgetting_score: Score of the forgetting, as `suite/score`.
        axis: The swept spec key.
        name: File name of the plot.
        reference_points: Arms that do not have the key, each drawn as a horizontal line.
    """
    with open_canvas(PLOT_WIDTH, 360) as canvas:
        panels = canvas.add_axes(2, sharex=True)
        positions, logarithmic = _axis_positions(sorted({value for value, _ in points}))
        titles = {
            "gain": f"gain in {plot_label(gain_score, 46)}",
            "forgotten": f"forgotten in {plot_label(forgetting_score, 42)}",
        }
        for axes, (quantity, title) in zip(panels, titles.items(), strict=True):
            axes.set_title(title, loc="left", color=PLACEHOLDER_COLORS["muted"])
            _draw_panel(canvas, axes, quantity, points, positions, reference_points)
        summary = "; ".join(
            f"{plot_label(point.arm)}: gain {format_number(point.gain.value)}, "
            f"forgotten {format_number(point.forgotten.value)}"
            for point in [*(point for _, point in points), *reference_points]
        )
        description = f"{summary}."
        if axis.sufficient_value in positions:
            value_text = _format_value(axis.sufficient_value, axis.percent)
            mean_position = math.fsum(positions.values()) / len(positions)
            position = positions[axis.sufficient_value]
            _draw_vertical_line(panels, position, f"sufficient: {value_text}", label_right=position < mean_position)
            description += f" {value_text} is sufficient."
        if logarithmic:
            _draw_axis_break(panels[-1], list(positions.items()))
        _set_ticks(panels[-1], positions, axis.percent)
        panels[-1].set_xlabel(plot_label(axis.key, 50) + (", logarithmic" if logarithmic else ""), loc="right")
        return finish_plot(canvas, name, f"Gain and forgetting over {plot_label(axis.key)}", description)


def _draw_panel(
    canvas: Canvas,
    axes: Any,
    quantity: str,
    points: Sequence[tuple[float, ArmPoint]],
    positions: Mapping[float, float],
    reference_points: Sequence[ArmPoint],
) -> None:
    """Draw the gain or the forgetting of all arms. quantity: `gain` or `forgotten`."""
    is_gain = quantity == "gain"
    color = PLACEHOLDER_COLORS["gain" if is_gain else "loss"]
    estimates = [(value, getattr(point, quantity), point.arm) for value, point in points]
    references = [(getattr(point, quantity), point.arm) for point in reference_points]
    means = [_mean([each.value for other, each, _ in estimates if other == value]) for value in positions]
    axes.plot(list(positions.values()), means, color=color, linewidth=1.6, linestyle="-" if is_gain else "--")
    for value, point in points:
        seeds = seed_values([point], quantity)
        dots = {"marker": "o", "markersize": 3, "alpha": 0.5, "linestyle": "none"}
        axes.plot([positions[value]] * len(seeds), seeds, color=color, **dots)
    for index, (value, estimate, arm) in enumerate(estimates):
        bars = axes.errorbar(
            positions[value],
            estimate.value,
            yerr=error_bar_lengths(estimate),
            color=color,
            marker="o" if is_gain else "D",
            markersize=5.5,
            elinewidth=1.2,
            capsize=3,
            linestyle="none",
        )
        canvas.add_tooltip(bars.lines[0], f"{quantity}-{index}", f"{plot_label(arm)}: {format_tooltip(estimate)}")
    axes.axhline(0, color=PLACEHOLDER_COLORS["muted"], linewidth=0.9)
    label_offset = 0.0
    for index, (estimate, arm) in enumerate(references):
        line = _draw_horizontal_line(axes, estimate.value, arm, label_offset)
        canvas.add_tooltip(line, f"{quantity}-reference-{index}", f"{plot_label(arm)}: {format_tooltip(estimate)}")
        label_offset += CHAR_WIDTH * TEXT_SIZE * (len(plot_label(arm, 26)) + 1)
    all_estimates = [*(estimate for _, estimate, _ in estimates), *(estimate for estimate, _ in references)]
    seeds = seed_values([*(point for _, point in points), *reference_points], quantity)
    axes.set_ylim(*axis_limits([*finite_bounds(all_estimates), *seeds, 0.0], 0.08))


def _axis_positions(values: Sequence[float]) -> tuple[dict[float, float], bool]:
    """Return value -> position on the axis, and whether the axis is logarithmic.

    Args:
        values: In ascending order.
    """
    positive = [value for value in values if value > 0]
    if values[0] < 0 or len(positive) < 2 or positive[-1] / positive[0] < LOG_AXIS_MIN_RATIO:
        return {value: value for value in values}, False
    logarithms = {value: math.log10(value) for value in positive}
    step = (logarithms[positive[-1]] - logarithms[positive[0]]) / (len(positive) - 1)
    return {value: logarithms.get(value, logarithms[positive[0]] - step) for value in values}, True


def _draw_axis_break(axes: Any, positions: Sequence[tuple[float, float]]) -> None:
    """Draw a break of the axis between 0, which has no logarithm, and the next value."""
    if positions[0][0] == 0:
        middle = (positions[0][1] + positions[1][1]) / 2
        axes.annotate(
            "//",
            (middle, 0.0),
            xycoords=("data", "axes fraction"),
            ha="center",
            va="center",
            fontsize=TEXT_SIZE,
            color=PLACEHOLDER_COLORS["muted"],
            annotation_clip=False,
        )


def _draw_vertical_line(panels: Sequence[Any], position: float, text: str, *, label_right: bool) -> None:
    """Draw a line through all panels, with a label on its right or its left."""
    for axes in panels:
        axes.axvline(position, color=PLACEHOLDER_COLORS["ink"], linewidth=1.1, linestyle=(0, (4, 2)), zorder=1)
    align = {"ha": "left" if label_right else "right", "va": "bottom"}
    offset = (5 if label_right else -5, 12)
    add_label(panels[0], text, (position, 0.0), offset, coords=("data", "axes fraction"), boxed=True, **align)


def _draw_horizontal_line(axes: Any, value: float, name: str, label_offset: float) -> Any:
    """Draw the line of an arm without a value, with its name at the right end.

    Args:
        axes: The panel.
        value: Position of the line.
        name: Name of the arm.
        label_offset: Pixels at the right end that are occupied by the names of other lines.
    """
    if math.isfinite(value):
        style: dict[str, Any] = {"coords": ("axes fraction", "data"), "ha": "right", "va": "bottom"}
        label = plot_label(name, 26)
        add_label(axes, label, (1.0, value), (-label_offset, 2), color=PLACEHOLDER_COLORS["muted"], **style)
    return axes.axhline(value, color=PLACEHOLDER_COLORS["muted"], linewidth=1.1, linestyle=(0, (1, 2)))


def _set_ticks(axes: Any, positions: Mapping[float, float], percent: bool) -> None:
    """Label each value that has room; the last one is always labeled."""
    span = (max(positions.values()) - min(positions.values())) or 1.0
    labeled: list[float] = []
    for value in positions:
        is_last = value == max(positions)
        if labeled and (positions[value] - positions[labeled[-1]]) / span <= MIN_TICK_DISTANCE:
            if not is_last:
                continue
            labeled.pop()
        labeled.append(value)
    axes.set_xticks([positions[value] for value in labeled], [_format_value(value, percent) for value in labeled])


def _format_value(value: float, percent: bool) -> str:
    return f"{100 * value:g} %" if percent else f"{value:g}"


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)
