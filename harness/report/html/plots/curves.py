"""Curves over the optimizer steps of a run: one stage after another along one axis."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from harness.report.html.plots.svg_canvas import (
    PLACEHOLDER_COLORS,
    PLOT_WIDTH,
    Plot,
    add_label,
    finish_plot,
    legend_label,
    open_canvas,
    plot_label,
    series_color,
    series_dash,
)
from harness.utils.formatting import format_number

PLOT_HEIGHT = 230.0
MAX_POINTS = 800
"""Points of a curve that are drawn; more are not visible and would only enlarge the page."""
SMOOTH_ABOVE_POINTS = 80
"""Points above which a running mean is drawn over the points."""
MAX_DOTTED_POINTS = 40
"""Points of a stage up to which each is marked with a dot."""


@dataclass(frozen=True)
class Curve:
    """The values of one key, stage by stage.

    Attributes:
        name: Its label.
        stages: For each stage (steps, values), equally long; undefined values are NaN.
        noisy: Whether a long curve also gets its running mean.
        mark_points: Whether points are marked if they are few.
        series_index: Index of its color and line style; None: its position among the curves.
        from_zero: Whether the axis of values includes 0.
    """

    name: str
    stages: tuple[tuple[Sequence[float], Sequence[float]], ...]
    noisy: bool = True
    mark_points: bool = False
    series_index: int | None = None
    from_zero: bool = False


@dataclass(frozen=True)
class StepMark:
    """A vertical line at one step.

    Attributes:
        stage_index: Index of the stage, from 0.
        step: Step within the stage.
        text: Label of the line.
        shaded_until: The steps from `step` to this one are shaded, because their weights were discarded; None: none.
    """

    stage_index: int
    step: float
    text: str
    shaded_until: float | None = None


def plot_curves(
    curves: Sequence[Curve],
    stages: Sequence[str],
    name: str,
    title: str,
    *,
    unit: str,
    marks: Sequence[StepMark] = (),
    stage_steps: Sequence[float] | None = None,
) -> Plot:
    """Plot curves over the steps of all stages, with a vertical line where a stage begins.

    Args:
        curves: The curves.
        stages: Names of the stages.
        name: File name of the plot.
        title: Title of the plot.
        unit: Unit of the values.
        marks: Steps to mark.
        stage_steps: Number of steps of each stage; None: the last step of its longest curve.
    """
    with open_canvas(PLOT_WIDTH, PLOT_HEIGHT + (18 if len(curves) > 1 else 0)) as canvas:
        (axes,) = canvas.add_axes()
        lengths = stage_steps or [_longest_stage(curves, index) for index in range(len(stages))]
        starts = [math.fsum(lengths[:index]) for index in range(len(stages))]
        total_steps = max(math.fsum(lengths), 1)
        for index, curve in enumerate(curves):
            _draw_curve(axes, index if curve.series_index is None else curve.series_index, curve, starts)
        if len(stages) > 1:
            _draw_stage_names(axes, stages, [*starts, math.fsum(lengths)], total_steps)
        if any(curve.from_zero for curve in curves):
            axes.set_ylim(bottom=min(0.0, axes.get_ylim()[0]))
        axes.set_xlim(0, total_steps)
        for mark in marks:
            _draw_mark(axes, mark, starts[mark.stage_index], total_steps, curves)
        axes.set_xlabel("step", loc="right")
        axes.set_ylabel(unit)
        _set_ticks(axes)
        if len(curves) > 1:
            canvas.figure.legend(loc="outside lower left", ncols=3, handlelength=2.2, columnspacing=1.2)
        marks_text = [f"{plot_label(stages[mark.stage_index])}: {mark.text}." for mark in marks]
        return finish_plot(canvas, name, title, " ".join([_describe_curves(curves), *marks_text]))


def steps_and_values(entries: Sequence[Mapping[str, float]], key: str) -> tuple[list[float], list[float]]:
    """Return (steps, values) of a key, from the log entries that have it."""
    with_key = [entry for entry in entries if key in entry]
    return [entry["step"] for entry in with_key], [entry[key] for entry in with_key]


def has_finite_value(curves: Sequence[Curve]) -> bool:
    """Return whether there is anything to draw."""
    return any(math.isfinite(value) for curve in curves for _, values in curve.stages for value in values)


def _draw_stage_names(axes: Any, stages: Sequence[str], bounds: Sequence[float], total_steps: float) -> None:
    """Draw a line where each stage begins, and its name above it. bounds: first step of each stage, and the end."""
    for index, stage in enumerate(stages):
        start, end = bounds[index], bounds[index + 1]
        if index:
            axes.axvline(start, color=PLACEHOLDER_COLORS["muted"], linewidth=0.8, linestyle=(0, (2, 3)))
        label = plot_label(stage, max(3, int((end - start) / total_steps * 52)))
        style: dict[str, Any] = {
            "coords": ("data", "axes fraction"),
            "ha": "center",
            "color": PLACEHOLDER_COLORS["muted"],
        }
        add_label(axes, label, ((start + end) / 2, 1.0), (0, 3), **style)


def _draw_curve(axes: Any, series_index: int, curve: Curve, starts: Sequence[float]) -> None:
    style = {"color": series_color(series_index), "linestyle": series_dash(series_index)}
    # The longest stage decides, so that all stages of a curve look the same.
    smoothed = curve.noisy and any(len(values) > SMOOTH_ABOVE_POINTS for _, values in curve.stages)
    dotted = curve.mark_points and all(len(values) <= MAX_DOTTED_POINTS for _, values in curve.stages)
    for stage_index, (steps, values) in enumerate(curve.stages):
        steps, values = downsample([starts[stage_index] + step for step in steps], values)
        style["label"] = "_" if stage_index else legend_label(curve.name)
        if smoothed:
            axes.plot(steps, values, linewidth=0.8, alpha=0.35, color=series_color(series_index))
            axes.plot(steps, running_mean(values, max(2, len(values) // 25)), linewidth=1.8, **style)
        else:
            dots = {"marker": "o", "markersize": 3 if dotted else 4} if dotted or len(values) < 3 else {}
            axes.plot(steps, values, linewidth=1.6, clip_on=not dots, **dots, **style)


def _draw_mark(axes: Any, mark: StepMark, start: float, total_steps: float, curves: Sequence[Curve]) -> None:
    """Draw a line at the step, a shade over the discarded steps, and the label where there is most room."""
    position = start + mark.step
    if mark.shaded_until is not None:
        end = start + mark.shaded_until
        axes.axvspan(position, end, color=PLACEHOLDER_COLORS["muted"], alpha=0.14, linewidth=0)
    axes.axvline(position, color=PLACEHOLDER_COLORS["ink"], linewidth=1.1, zorder=1)
    label_right = position < total_steps / 2
    label_low = _mean_height_near(axes, mark, curves) > 0.5
    offset = (4 if label_right else -4, 4 if label_low else -4)
    align = {"ha": "left" if label_right else "right", "va": "bottom" if label_low else "top"}
    top_or_bottom = (position, 0.0 if label_low else 1.0)
    add_label(axes, plot_label(mark.text), top_or_bottom, offset, coords=("data", "axes fraction"), boxed=True, **align)


def _mean_height_near(axes: Any, mark: StepMark, curves: Sequence[Curve]) -> float:
    """Return how high the curves are near a mark, as a fraction of the axis; 0.5 where there is no curve."""
    bottom, top = axes.get_ylim()
    nearby = []
    for curve in curves:
        points = [(abs(step - mark.step), value) for step, value in zip(*curve.stages[mark.stage_index], strict=True)]
        nearby += [value for _, value in sorted(points)[:3] if math.isfinite(value)]
    return (math.fsum(nearby) / len(nearby) - bottom) / (top - bottom) if nearby else 0.5


def downsample(steps: Sequence[float], values: Sequence[float]) -> tuple[list[float], list[float]]:
    """Reduce a curve to at most `MAX_POINTS` points: means of equally many neighbors, without the NaN among them.

    Each mean is at the step of its last neighbor.
    """
    size = math.ceil(len(values) / MAX_POINTS)
    if size <= 1:
        return list(steps), list(values)
    starts = range(0, len(values), size)
    last_steps = [steps[min(start + size, len(steps)) - 1] for start in starts]
    return last_steps, [_finite_mean(values[start : start + size]) for start in starts]


def running_mean(values: Sequence[float], half_window: int) -> list[float]:
    """Return the mean of each value with up to `half_window` neighbors on each side, equally many on both."""
    means = []
    for index in range(len(values)):
        reach = min(half_window, index, len(values) - 1 - index)
        means.append(_finite_mean(values[index - reach : index + reach + 1]))
    return means


def _finite_mean(values: Sequence[float]) -> float:
    finite = [value for value in values if math.isfinite(value)]
    return math.fsum(finite) / len(finite) if finite else math.nan


def _longest_stage(curves: Sequence[Curve], stage_index: int) -> float:
    return max((max(curve.stages[stage_index][0], default=0.0) for curve in curves), default=0.0)


def _describe_curves(curves: Sequence[Curve]) -> str:
    parts = []
    for curve in curves:
        values = [value for _, values in curve.stages for value in values if math.isfinite(value)]
        if values:
            first, last = format_number(values[0]), format_number(values[-1])
            parts.append(f"{plot_label(curve.name)} goes from {first} to {last}")
    return "; ".join(parts) + "." if parts else "No value is finite."


def _set_ticks(axes: Any) -> None:
    """Label the axes with integer steps, and with values without an offset or a factor."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.yaxis.set_major_locator(MaxNLocator(nbins=5, steps=[1, 2, 2.5, 5, 10]))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.6g}".replace("-", "−")))
