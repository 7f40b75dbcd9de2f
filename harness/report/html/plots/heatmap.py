"""The forgetting matrix as a heat map: one row a stage, one column a suite, each cell with its value."""

from __future__ import annotations

import math

from harness.report.html.plots.svg_canvas import LIGHT, STAND_INS, TEXT, WIDTH, Plot, finish, label, sheet
from harness.report.stage_suite_matrix import Matrix
from harness.utils.formatting import decimals, number

CELL, ROW, NAMES, HEAD = 76.0, 38.0, 84.0, 30.0
STRONGEST = 0.5
"""Opacity of the largest change, through which text in the page's ink stays legible in light and dark."""


def heat(matrix: Matrix, stages: tuple[str, ...], name: str) -> Plot:
    """A heat map of one score.

    A cell's colour is its change since the base model, by its strength against the largest in the matrix: blue for the
    better, orange for the worse, whatever the direction in which the metric is better. A frame marks the stage that
    teaches what the suite examines.
    """
    rows, columns = len(matrix.values), len(matrix.suites)
    width = max(WIDTH, NAMES + CELL * columns)
    sign = 1.0 if matrix.higher_is_better else -1.0
    known = [value for row in matrix.values for value in row if math.isfinite(value)]
    changes = [[sign * (value - matrix.values[0][j]) for j, value in enumerate(row)] for row in matrix.values]
    largest = max((abs(one) for row in changes for one in row if math.isfinite(one)), default=0.0)
    places, small = decimals(known), decimals([largest], digits=3)
    with sheet(width, HEAD + ROW * rows + 6, bare=True) as drawing:
        from matplotlib.patches import Rectangle

        axes = drawing.figure.add_axes((0, 0, 1, 1))
        axes.set_axis_off()
        axes.set_xlim(-NAMES, max(width - NAMES, 1))
        axes.set_ylim(ROW * rows + 6, -HEAD)
        cell = (width - NAMES) / columns
        for j, suite in enumerate(matrix.suites):
            role = " *" if matrix.general[j] else ""
            axes.text((j + 0.5) * cell, -8, label(suite, int(cell // 7)) + role, ha="center", color=STAND_INS["muted"])
        for i, stage in enumerate(stages[:rows]):
            axes.text(-10, (i + 0.5) * ROW, label(stage, 12), ha="right", va="center", color=STAND_INS["muted"])
            for j, value in enumerate(matrix.values[i]):
                change = changes[i][j]
                strength = STRONGEST * abs(change) / largest if largest and math.isfinite(change) else 0.0
                own = matrix.learned[j] == i and i > 0
                box = Rectangle(
                    (j * cell + 2, i * ROW + 2),
                    cell - 4,
                    ROW - 4,
                    facecolor=(*_rgb("gain" if change > 0 else "loss"), strength),
                    edgecolor=STAND_INS["ink" if own else "line"],
                    linewidth=1.4 if own else 0.7,
                )
                axes.add_patch(box)
                told = number(sign * change, small, sign=True) if i else ""
                where = f"{label(matrix.suites[j])} after {label(stage)}: {number(value)}"
                drawing.say(box, f"cell-{i}-{j}", f"{where}, {told} since the base" if told else where)
                middle = (i + (0.36 if told else 0.5)) * ROW
                axes.text((j + 0.5) * cell, middle, number(value, places), ha="center", va="center")
                if told:
                    axes.text(
                        (j + 0.5) * cell, (i + 0.72) * ROW, told, ha="center", va="center", fontsize=TEXT - 2,
                    )  # fmt: skip
        better = "higher" if matrix.higher_is_better else "lower"
        title = f"{matrix.called} of every suite after every stage"
        return finish(drawing, name, title, f"Rows are stages, columns are suites; {better} is better.")


def _rgb(name: str) -> tuple[float, float, float]:
    """The stand-in of a colour as matplotlib takes one that is to be seen through."""
    assert name in LIGHT
    code = STAND_INS[name]
    return int(code[1:3], 16) / 255, int(code[3:5], 16) / 255, int(code[5:7], 16) / 255
