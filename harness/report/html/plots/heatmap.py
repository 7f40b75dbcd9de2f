"""Heat map of a stage × suite matrix: one row per stage, one column per suite, each cell with its value."""

from __future__ import annotations

import math
from typing import Any

from harness.report.html.plots.svg_canvas import (
    PLACEHOLDER_COLORS,
    PLOT_WIDTH,
    TEXT_SIZE,
    Plot,
    finish_plot,
    open_canvas,
    plot_label,
)
from harness.report.stage_suite_matrix import StageSuiteMatrix
from harness.utils.formatting import decimal_places, format_number

CELL_WIDTH, ROW_HEIGHT, STAGE_NAMES_WIDTH, HEADER_HEIGHT = 76.0, 38.0, 84.0, 30.0
MAX_OPACITY = 0.5
"""Opacity of the largest change; text stays legible on it in the light and the dark theme."""


def plot_heatmap(matrix: StageSuiteMatrix, stages: tuple[str, ...], name: str) -> Plot:
    """Plot the heat map of one score.

    The color of a cell shows its change since the base model, relative to the largest change in the matrix. Blue is
    better and orange worse, whether higher or lower values are better. A dark frame marks the stage that teaches the
    suite.

    Args:
        matrix: The scores, stages × suites.
        stages: Names of the stages, the base model first.
        name: File name of the plot.
    """
    rows, columns = len(matrix.values), len(matrix.suites)
    width = max(PLOT_WIDTH, STAGE_NAMES_WIDTH + CELL_WIDTH * columns)
    cell_width = (width - STAGE_NAMES_WIDTH) / columns
    sign = 1.0 if matrix.higher_is_better else -1.0
    # (stages, suites); above 0 is better
    gains = [[sign * (value - matrix.values[0][j]) for j, value in enumerate(row)] for row in matrix.values]
    largest = max((abs(gain) for row in gains for gain in row if math.isfinite(gain)), default=0.0)
    value_places = decimal_places([value for row in matrix.values for value in row if math.isfinite(value)])
    change_places = decimal_places([largest], digits=3)
    with open_canvas(width, HEADER_HEIGHT + ROW_HEIGHT * rows + 6, manual_layout=True) as canvas:
        from matplotlib.patches import Rectangle

        axes = canvas.figure.add_axes((0, 0, 1, 1))
        axes.set_axis_off()
        axes.set_xlim(-STAGE_NAMES_WIDTH, max(width - STAGE_NAMES_WIDTH, 1))
        axes.set_ylim(ROW_HEIGHT * rows + 6, -HEADER_HEIGHT)
        muted = PLACEHOLDER_COLORS["muted"]
        for j, suite in enumerate(matrix.suites):
            label = plot_label(suite, int(cell_width // 7)) + (" *" if matrix.general[j] else "")
            axes.text((j + 0.5) * cell_width, -8, label, ha="center", color=muted)
        for i, stage in enumerate(stages[:rows]):
            axes.text(-10, (i + 0.5) * ROW_HEIGHT, plot_label(stage, 12), ha="right", va="center", color=muted)
            for j, value in enumerate(matrix.values[i]):
                gain = gains[i][j]
                opacity = MAX_OPACITY * abs(gain) / largest if largest and math.isfinite(gain) else 0.0
                teaches_suite = matrix.learned[j] == i and i > 0
                box = Rectangle(
                    (j * cell_width + 2, i * ROW_HEIGHT + 2),
                    cell_width - 4,
                    ROW_HEIGHT - 4,
                    facecolor=(*_placeholder_rgb("gain" if gain > 0 else "loss"), opacity),
                    edgecolor=PLACEHOLDER_COLORS["ink" if teaches_suite else "line"],
                    linewidth=1.4 if teaches_suite else 0.7,
                )
                axes.add_patch(box)
                change = format_number(sign * gain, change_places, sign=True) if i else ""
                tooltip = f"{plot_label(matrix.suites[j])} after {plot_label(stage)}: {format_number(value)}"
                canvas.add_tooltip(box, f"cell-{i}-{j}", f"{tooltip}, {change} since the base" if change else tooltip)
                center: dict[str, Any] = {"ha": "center", "va": "center"}
                x, y = (j + 0.5) * cell_width, (i + (0.36 if change else 0.5)) * ROW_HEIGHT
                axes.text(x, y, format_number(value, value_places), **center)
                if change:
                    axes.text(x, (i + 0.72) * ROW_HEIGHT, change, fontsize=TEXT_SIZE - 2, **center)
        better = "higher" if matrix.higher_is_better else "lower"
        title = f"{matrix.called} of every suite after every stage"
        return finish_plot(canvas, name, title, f"Rows are stages, columns are suites; {better} is better.")


def _placeholder_rgb(name: str) -> tuple[float, float, float]:
    """Return the placeholder of a color as red, green and blue in [0, 1], to be used with an opacity."""
    code = PLACEHOLDER_COLORS[name]
    return int(code[1:3], 16) / 255, int(code[3:5], 16) / 255, int(code[5:7], 16) / 255
