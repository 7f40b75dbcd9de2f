"""The forgetting matrix as a heat map: one row a stage, one column a suite, each cell with its value."""

from __future__ import annotations

import math

from harness.report.html.plots.svg_canvas import (
    LIGHT_COLORS,
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
"""Opacity of the largest change, through which text in the page's ink stays legible in light and dark."""


def plot_heatmap(matrix: StageSuiteMatrix, stages: tuple[str, ...], name: str) -> Plot:
    """A heat map of one score.

    A cell's colour is its change since the base model, by its strength against the largest in the matrix: blue for the
    better, orange for the worse, whatever the direction in which the metric is better. A frame marks the stage that
    teaches what the suite examines.
    """
    rows, columns = len(matrix.values), len(matrix.suites)
    width = max(PLOT_WIDTH, STAGE_NAMES_WIDTH + CELL_WIDTH * columns)
    sign = 1.0 if matrix.higher_is_better else -1.0
    known = [value for row in matrix.values for value in row if math.isfinite(value)]
    changes = [[sign * (value - matrix.values[0][j]) for j, value in enumerate(row)] for row in matrix.values]
    largest = max((abs(one) for row in changes for one in row if math.isfinite(one)), default=0.0)
    places, small = decimal_places(known), decimal_places([largest], digits=3)
    with open_canvas(width, HEADER_HEIGHT + ROW_HEIGHT * rows + 6, manual_layout=True) as drawing:
        from matplotlib.patches import Rectangle

        axes = drawing.figure.add_axes((0, 0, 1, 1))
        axes.set_axis_off()
        axes.set_xlim(-STAGE_NAMES_WIDTH, max(width - STAGE_NAMES_WIDTH, 1))
        axes.set_ylim(ROW_HEIGHT * rows + 6, -HEADER_HEIGHT)
        cell = (width - STAGE_NAMES_WIDTH) / columns
        for j, suite in enumerate(matrix.suites):
            role = " *" if matrix.general[j] else ""
            axes.text(
                (j + 0.5) * cell,
                -8,
                plot_label(suite, int(cell // 7)) + role,
                ha="center",
                color=PLACEHOLDER_COLORS["muted"],
            )
        for i, stage in enumerate(stages[:rows]):
            axes.text(
                -10,
                (i + 0.5) * ROW_HEIGHT,
                plot_label(stage, 12),
                ha="right",
                va="center",
                color=PLACEHOLDER_COLORS["muted"],
            )
            for j, value in enumerate(matrix.values[i]):
                change = changes[i][j]
                strength = MAX_OPACITY * abs(change) / largest if largest and math.isfinite(change) else 0.0
                own = matrix.learned[j] == i and i > 0
                box = Rectangle(
                    (j * cell + 2, i * ROW_HEIGHT + 2),
                    cell - 4,
                    ROW_HEIGHT - 4,
                    facecolor=(*_placeholder_rgb("gain" if change > 0 else "loss"), strength),
                    edgecolor=PLACEHOLDER_COLORS["ink" if own else "line"],
                    linewidth=1.4 if own else 0.7,
                )
                axes.add_patch(box)
                told = format_number(sign * change, small, sign=True) if i else ""
                where = f"{plot_label(matrix.suites[j])} after {plot_label(stage)}: {format_number(value)}"
                drawing.add_tooltip(box, f"cell-{i}-{j}", f"{where}, {told} since the base" if told else where)
                middle = (i + (0.36 if told else 0.5)) * ROW_HEIGHT
                axes.text((j + 0.5) * cell, middle, format_number(value, places), ha="center", va="center")
                if told:
                    axes.text(
                        (j + 0.5) * cell, (i + 0.72) * ROW_HEIGHT, told, ha="center", va="center", fontsize=TEXT_SIZE - 2,
                    )  # fmt: skip
        better = "higher" if matrix.higher_is_better else "lower"
        title = f"{matrix.called} of every suite after every stage"
        return finish_plot(drawing, name, title, f"Rows are stages, columns are suites; {better} is better.")


def _placeholder_rgb(name: str) -> tuple[float, float, float]:
    """The stand-in of a colour as matplotlib takes one that is to be seen through."""
    assert name in LIGHT_COLORS
    code = PLACEHOLDER_COLORS[name]
    return int(code[1:3], 16) / 255, int(code[3:5], 16) / 255, int(code[5:7], 16) / 255
