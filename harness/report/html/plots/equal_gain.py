"""Forgetting at equal gain: the path of every run, and the gain at which the arms are compared."""

from __future__ import annotations

from typing import Any

from harness.report.equal_gain import EqualGain
from harness.report.html.plots.gain_vs_forgetting import error_bar_lengths, format_tooltip
from harness.report.html.plots.svg_canvas import (
    PLACEHOLDER_COLORS,
    PLOT_WIDTH,
    Plot,
    finish_plot,
    legend_label,
    open_canvas,
    plot_label,
    series_color,
    series_dash,
)
from harness.utils.formatting import format_number

PLOT_HEIGHT = 320.0
LEGEND_ROW_HEIGHT = 18.0


def plot_equal_gain(equal_gain: EqualGain, gain_score: str, forgetting_score: str, name: str) -> Plot:
    """Plot the path of every run from the base model on, gain (up) against forgetting (right).

    Args:
        equal_gain: The comparison; it must have a gain.
        gain_score: Score of the gain, as `suite/score`.
        forgetting_score: Score of the forgetting, as `suite/score`.
        name: File name of the plot.
    """
    assert equal_gain.gain is not None
    rows = -(-len(equal_gain.curves) // 3)
    with open_canvas(PLOT_WIDTH, PLOT_HEIGHT + rows * LEGEND_ROW_HEIGHT) as canvas:
        (axes,) = canvas.add_axes()
        axes.grid(axis="x", color=PLACEHOLDER_COLORS["line"], linewidth=0.7)
        axes.axhline(equal_gain.gain, color=PLACEHOLDER_COLORS["muted"], linewidth=1.0, linestyle=(0, (2, 3)))
        axes.axvline(0, color=PLACEHOLDER_COLORS["muted"], linewidth=0.9)
        points = {point.arm: point for point in equal_gain.points}
        for index, (arm, curves) in enumerate(equal_gain.curves.items()):
            color = series_color(index)
            for number, curve in enumerate(curves):
                gains, losses = zip(*curve, strict=True)
                label = "_" if number else legend_label(arm)
                style: dict[str, Any] = {
                    "color": color,
                    "linestyle": series_dash(index),
                    "linewidth": 1.3,
                    "label": label,
                }
                axes.plot(losses, gains, marker=".", markersize=5, alpha=0.75, **style)
            if arm not in points:
                continue
            forgotten = points[arm].forgotten
            position = forgotten.value, equal_gain.gain
            axes.errorbar(*position, xerr=error_bar_lengths(forgotten), fmt="none", ecolor=color, elinewidth=1.6)
            (mark,) = axes.plot(*position, marker="D", markersize=7, color=color, linestyle="none")
            text = f"{plot_label(arm)}: forgotten {format_tooltip(forgotten)}"
            canvas.add_tooltip(mark, f"equal-{index}", text)
        axes.locator_params(axis="x", nbins=6)
        axes.set_title(f"↑ gain in {plot_label(gain_score, 44)}", loc="left", color=PLACEHOLDER_COLORS["muted"])
        axes.set_xlabel(f"forgotten in {plot_label(forgetting_score, 40)} →", loc="right")
        canvas.figure.legend(loc="outside lower left", ncols=3, handlelength=2.2, columnspacing=1.2)
        summary = "; ".join(
            f"{plot_label(point.arm)} has forgotten {format_number(point.forgotten.value)}"
            for point in equal_gain.points
        )
        description = f"At a gain of {format_number(equal_gain.gain)}: {summary}. Left is better."
        return finish_plot(canvas, name, "Forgetting at equal gain", description)
