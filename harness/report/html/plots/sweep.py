"""What arms gained and what they forgot, as curves over the one number that they differ in."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from harness.report.html.plots.gain_vs_forgetting import CHAR_WIDTH, error_bar_lengths, finite_bounds, format_estimate
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
from harness.utils.formatting import format_number

LOG_AXIS_MIN_RATIO = 20.0
"""How many times the smallest value above 0 the largest must be for a logarithmic axis."""
TICK_LABEL_SHARE = 0.075
"""What the name of a value takes of the axis."""


def plot_sweep(
    points: Sequence[tuple[float, ArmPoint]],
    gain_score: str,
    forgetting_score: str,
    parameter: str,
    name: str,
    *,
    percent: bool = False,
    sufficient_value: float | None = None,
    reference_points: Sequence[ArmPoint] = (),
) -> Plot:
    """Gain (above) and forgetting (below) over the value of the one key that the arms differ in, with intervals.

    points: (value of the key, arm). Arms of one value (seeds) are drawn each, and the line goes through their mean.
    sufficient_value: the value that is enough, marked by an upright line. reference_points: arms without a value, each
    a level line. Values from 0 up whose largest is `LOG_AXIS_MIN_RATIO` times the smallest above 0 stand on a logarithmic axis, and
    0 apart.
    """
    with open_canvas(PLOT_WIDTH, 360) as drawing:
        panels = drawing.add_axes(2, sharex=True)
        places, logarithmic = _axis_positions(sorted({value for value, _ in points}))
        sides = (
            ("gain", f"gain in {plot_label(gain_score, 46)}", "gain"),
            ("forgotten", f"forgotten in {plot_label(forgetting_score, 42)}", "loss"),
        )
        for axes, (side, title, main) in zip(panels, sides, strict=True):
            found = [(value, getattr(point, side), point.arm) for value, point in points]
            means = [_mean([one.value for at, one, _ in found if at == value]) for value in places]
            axes.plot(
                list(places.values()), means, color=PLACEHOLDER_COLORS[main], linewidth=1.6,
                linestyle="-" if side == "gain" else "--",
            )  # fmt: skip
            for number_, (value, one, arm) in enumerate(found):
                bars = axes.errorbar(
                    places[value], one.value, yerr=error_bar_lengths(one), color=PLACEHOLDER_COLORS[main],
                    marker="o" if side == "gain" else "D", markersize=5.5, elinewidth=1.2, capsize=3, linestyle="none",
                )  # fmt: skip
                drawing.add_tooltip(bars.lines[0], f"{side}-{number_}", f"{plot_label(arm)}: {format_estimate(one)}")
            axes.axhline(0, color=PLACEHOLDER_COLORS["muted"], linewidth=0.9)
            axes.set_title(title, loc="left", color=PLACEHOLDER_COLORS["muted"])
            levels = [(getattr(one, side), one.arm) for one in reference_points]
            taken = 0.0
            for number_, (one, arm) in enumerate(levels):
                drawing.add_tooltip(
                    _draw_horizontal_line(axes, one.value, arm, taken),
                    f"{side}-beside-{number_}",
                    f"{plot_label(arm)}: {format_estimate(one)}",
                )
                taken += CHAR_WIDTH * TEXT_SIZE * (len(plot_label(arm, 26)) + 1)
            axes.set_ylim(
                *axis_limits([*finite_bounds([one for _, one, _ in found] + [one for one, _ in levels]), 0.0], 0.08)
            )
        if sufficient_value in places:
            told = f"enough: {_format_value(sufficient_value, percent)}"
            _draw_vertical_line(
                panels,
                places[sufficient_value],
                told,
                right=places[sufficient_value] < math.fsum(places.values()) / len(places),
            )
        if logarithmic:
            _draw_axis_break(panels[-1], list(places.items()))
        _set_ticks(panels[-1], places, percent)
        panels[-1].set_xlabel(plot_label(parameter, 50) + (", logarithmic" if logarithmic else ""), loc="right")
        told = "; ".join(
            f"{plot_label(p.arm)}: gain {format_number(p.gain.value)}, forgotten {format_number(p.forgotten.value)}"
            for p in [*(p for _, p in points), *reference_points]
        )
        more = f" {_format_value(sufficient_value, percent)} is enough." if sufficient_value in places else ""
        return finish_plot(drawing, name, f"Gain and forgetting over {plot_label(parameter)}", f"{told}.{more}")


def _axis_positions(values: Sequence[float]) -> tuple[dict[float, float], bool]:
    """Where each value stands along the axis, and whether that is by its logarithm. values: in order."""
    above = [one for one in values if one > 0]
    if values[0] < 0 or len(above) < 2 or above[-1] / above[0] < LOG_AXIS_MIN_RATIO:
        return {one: one for one in values}, False
    made = {one: math.log10(one) for one in above}
    step = (made[above[-1]] - made[above[0]]) / (len(above) - 1)
    return {one: made.get(one, made[above[0]] - step) for one in values}, True


def _draw_axis_break(axes: Any, positions: Sequence[tuple[float, float]]) -> None:
    """The sign of a broken axis between 0, which has no logarithm, and the value after it."""
    if positions[0][0] == 0:
        middle = (positions[0][1] + positions[1][1]) / 2
        axes.annotate(
            "//", (middle, 0.0), xycoords=("data", "axes fraction"), ha="center", va="center", fontsize=TEXT_SIZE,
            color=PLACEHOLDER_COLORS["muted"], annotation_clip=False,
        )  # fmt: skip


def _draw_vertical_line(panels: Sequence[Any], position: float, text: str, *, right: bool) -> None:
    """A line through all panels with a word beside it, on its right or its left."""
    for axes in panels:
        axes.axvline(position, color=PLACEHOLDER_COLORS["ink"], linewidth=1.1, linestyle=(0, (4, 2)), zorder=1)
    panels[0].annotate(
        text, (position, 0.0), xycoords=("data", "axes fraction"), xytext=(5 if right else -5, 12),
        textcoords="offset points", ha="left" if right else "right", va="bottom", fontsize=TEXT_SIZE - 1,
        bbox={"boxstyle": "round,pad=0.15", "fc": PLACEHOLDER_COLORS["surface"], "ec": "none", "alpha": 0.8},
    )  # fmt: skip


def _draw_horizontal_line(axes: Any, value: float, name: str, label_offset: float) -> Any:
    """A level line of an arm that has no place along the axis, with its name at the right end.

    label_offset: pixels from there that names of others have, whose lines may be near.
    """
    if math.isfinite(value):
        axes.annotate(
            plot_label(name, 26), (1.0, value), xycoords=("axes fraction", "data"), xytext=(-label_offset, 2),
            textcoords="offset points", ha="right", va="bottom", fontsize=TEXT_SIZE - 1, color=PLACEHOLDER_COLORS["muted"],
        )  # fmt: skip
    return axes.axhline(value, color=PLACEHOLDER_COLORS["muted"], linewidth=1.1, linestyle=(0, (1, 2)))


def _set_ticks(axes: Any, positions: Mapping[float, float], percent: bool) -> None:
    """A mark at each value that has room for its name; the last one always has."""
    span = (max(positions.values()) - min(positions.values())) or 1.0
    shown: list[float] = []
    for value in positions:
        last = value == max(positions)
        if shown and (positions[value] - positions[shown[-1]]) / span <= TICK_LABEL_SHARE:
            if not last:
                continue
            shown.pop()
        shown.append(value)
    axes.set_xticks([positions[one] for one in shown], [_format_value(one, percent) for one in shown])


def _format_value(value: float, percent: bool) -> str:
    return f"{100 * value:g} %" if percent else f"{value:g}"


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)
