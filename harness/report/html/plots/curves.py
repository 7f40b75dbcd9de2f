"""Curves over the updates of a run: one stage after another along one axis."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from harness.report.html.plots.svg_canvas import (
    PLACEHOLDER_COLORS,
    PLOT_WIDTH,
    TEXT_SIZE,
    Plot,
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
"""Points of a curve that are drawn: more cannot be told apart, and would only make the page heavy."""
SMOOTH_ABOVE_POINTS = 80
"""Points above which a running mean is drawn over the points themselves."""
MAX_DOTTED_POINTS = 40
"""Points of a stage up to which each of a few that were measured is a dot."""


@dataclass(frozen=True)
class Curve:
    """What one key came to, stage by stage. stages: for each (updates, values), equally long; NaN where undefined.

    noisy: whether a long one is shown by its running mean too. mark_points: whether each of few points is marked.
    series_index: the number of its colour and line, from 0; None: its place among the curves.
    """

    name: str
    stages: tuple[tuple[Sequence[float], Sequence[float]], ...]
    noisy: bool = True
    mark_points: bool = False
    series_index: int | None = None


@dataclass(frozen=True)
class StepMark:
    """An update of a stage that a line marks. stage_index: its number, from 0. text: what stands beside the line.

    shaded_until: the update up to which what came after it was put aside, which is shaded; None: nothing was.
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
    from_zero: bool = False,
    marks: Sequence[StepMark] = (),
    stage_steps: Sequence[float] | None = None,
) -> Plot:
    """One or more curves over the updates, with a line where a stage begins. unit: of the values, in words.

    stage_steps: the updates of each stage; None: it is as long as its longest curve.
    """
    with open_canvas(PLOT_WIDTH, PLOT_HEIGHT + (18 if len(curves) > 1 else 0)) as drawing:
        (axes,) = drawing.add_axes()
        longest = stage_steps or [_longest_stage(curves, stage) for stage in range(len(stages))]
        starts = [math.fsum(longest[:stage]) for stage in range(len(stages))]
        for place, curve in enumerate(curves):
            _draw_curve(axes, place if curve.series_index is None else curve.series_index, curve, starts)
        ends = [*starts[1:], math.fsum(longest)]
        if len(starts) > 1:
            for stage, start in enumerate(starts):
                if stage:
                    axes.axvline(start, color=PLACEHOLDER_COLORS["muted"], linewidth=0.8, linestyle=(0, (2, 3)))
                share = (ends[stage] - start) / max(ends[-1], 1)
                axes.annotate(
                    plot_label(stages[stage], max(3, int(share * 52))), ((start + ends[stage]) / 2, 1.0),
                    xycoords=("data", "axes fraction"), xytext=(0, 3), textcoords="offset points", ha="center",
                    fontsize=TEXT_SIZE - 1, color=PLACEHOLDER_COLORS["muted"], annotation_clip=False,
                )  # fmt: skip
        if from_zero:
            axes.set_ylim(bottom=min(0.0, axes.get_ylim()[0]))
        axes.set_xlim(0, max(ends[-1], 1))
        for mark in marks:
            _draw_mark(axes, mark, starts[mark.stage_index], max(ends[-1], 1), curves)
        axes.set_xlabel("update", loc="right")
        axes.set_ylabel(unit)
        _set_ticks(axes)
        if len(curves) > 1:
            drawing.figure.legend(loc="outside lower left", ncols=3, handlelength=2.2, columnspacing=1.2)
        told = [f"{plot_label(stages[one.stage_index])}: {one.text}" for one in marks]
        return finish_plot(drawing, name, title, " ".join([_describe_curves(curves), *(f"{one}." for one in told)]))


def _draw_curve(axes: Any, series_index: int, curve: Curve, starts: Sequence[float]) -> None:
    style = {"color": series_color(series_index), "linestyle": series_dash(series_index)}
    # All stages in one manner.
    smoothed = curve.noisy and any(len(values) > SMOOTH_ABOVE_POINTS for _, values in curve.stages)
    few = curve.mark_points and all(len(values) <= MAX_DOTTED_POINTS for _, values in curve.stages)
    for stage, (updates, values) in enumerate(curve.stages):
        updates, values = downsample([starts[stage] + one for one in updates], values)
        style["label"] = "_" if stage else legend_label(curve.name)
        if smoothed:
            axes.plot(updates, values, linewidth=0.8, alpha=0.35, color=series_color(series_index))
            axes.plot(updates, running_mean(values, max(2, len(values) // 25)), linewidth=1.8, **style)
        else:
            dots = {"marker": "o", "markersize": 3 if few else 4} if few or len(values) < 3 else {}
            axes.plot(updates, values, linewidth=1.6, clip_on=not dots, **dots, **style)


def _draw_mark(axes: Any, mark: StepMark, start: float, total_steps: float, curves: Sequence[Curve]) -> None:
    """A line at the update, a shade over what was put aside, and its words where there is most room beside the line."""
    at = start + mark.step
    if mark.shaded_until is not None:
        axes.axvspan(at, start + mark.shaded_until, color=PLACEHOLDER_COLORS["muted"], alpha=0.14, linewidth=0)
    axes.axvline(at, color=PLACEHOLDER_COLORS["ink"], linewidth=1.1, zorder=1)
    right, low = at < total_steps / 2, _mean_height_near(axes, mark, curves) > 0.5
    axes.annotate(
        plot_label(mark.text), (at, 0.0 if low else 1.0), xycoords=("data", "axes fraction"),
        xytext=(4 if right else -4, 4 if low else -4), textcoords="offset points", ha="left" if right else "right",
        va="bottom" if low else "top", fontsize=TEXT_SIZE - 1,
        bbox={"boxstyle": "round,pad=0.15", "fc": PLACEHOLDER_COLORS["surface"], "ec": "none", "alpha": 0.8},
    )  # fmt: skip


def _mean_height_near(axes: Any, mark: StepMark, curves: Sequence[Curve]) -> float:
    """How high up the curves are about a mark, as a mean share of the axis; the middle where there is none."""
    bottom, top = axes.get_ylim()
    near = []
    for curve in curves:
        points = [(abs(at - mark.step), value) for at, value in zip(*curve.stages[mark.stage_index], strict=True)]
        near += [value for _, value in sorted(points)[:3] if math.isfinite(value)]
    return (math.fsum(near) / len(near) - bottom) / (top - bottom) if near else 0.5


def downsample(steps: Sequence[float], values: Sequence[float]) -> tuple[list[float], list[float]]:
    """At most `MAX_POINTS` points: each the mean of as many neighbours, at the last one's update. NaN are left out."""
    size = math.ceil(len(values) / MAX_POINTS)
    if size <= 1:
        return list(steps), list(values)
    made = []
    for start in range(0, len(values), size):
        known = [one for one in values[start : start + size] if math.isfinite(one)]
        made.append((steps[min(start + size, len(steps)) - 1], math.fsum(known) / len(known) if known else math.nan))
    return [one for one, _ in made], [one for _, one in made]


def running_mean(values: Sequence[float], half_window: int) -> list[float]:
    """Each value's mean with its neighbours, up to `half_window` on each side, and as many on one as on the other."""
    made = []
    for index in range(len(values)):
        reach = min(half_window, index, len(values) - 1 - index)
        known = [one for one in values[index - reach : index + reach + 1] if math.isfinite(one)]
        made.append(math.fsum(known) / len(known) if known else math.nan)
    return made


def _longest_stage(curves: Sequence[Curve], stage: int) -> float:
    return max((max(curve.stages[stage][0], default=0.0) for curve in curves), default=0.0)


def _describe_curves(curves: Sequence[Curve]) -> str:
    parts = []
    for curve in curves:
        values = [one for _, values in curve.stages for one in values if math.isfinite(one)]
        if values:
            parts.append(
                f"{plot_label(curve.name)} goes from {format_number(values[0])} to {format_number(values[-1])}"
            )
    return "; ".join(parts) + "." if parts else "No value is finite."


def _set_ticks(axes: Any) -> None:
    """Whole updates along the axis; values written as they are, without an offset or a factor beside the axis."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.yaxis.set_major_locator(MaxNLocator(nbins=5, steps=[1, 2, 2.5, 5, 10]))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.6g}".replace("-", "−")))


def steps_and_values(entries: Sequence[Mapping[str, float]], key: str) -> tuple[list[float], list[float]]:
    """(updates, values) of a key in the entries of a stage that have it."""
    found = [entry for entry in entries if key in entry]
    return [entry["step"] for entry in found], [entry[key] for entry in found]
