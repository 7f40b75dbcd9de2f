"""Bar charts: lengths of the rows of a source, and shares of the sources of each stage."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from harness.report.html.plots.svg_canvas import (
    PLACEHOLDER_COLORS,
    PLOT_WIDTH,
    TEXT_SIZE,
    Canvas,
    Plot,
    add_label,
    finish_plot,
    legend_label,
    open_canvas,
    plot_label,
    series_color,
)
from harness.utils.formatting import MISSING

if TYPE_CHECKING:
    from matplotlib.axes import Axes

ROW_HEIGHT = 19.0
MAX_BINS = 14
HATCHES = ("", "////", "....", "\\\\\\\\", "xxxx", "++++")
MIN_LABELED_SHARE = 0.09
"""Share from which on a bar has room for its label."""


@dataclass(frozen=True)
class LengthBin:
    """One bin of a length histogram.

    Attributes:
        low: Smallest length in tokens.
        high: Largest length in tokens, inclusive.
        rows: Number of rows.
        truncated: Whether these rows are longer than `max_length`.
    """

    low: int
    high: int
    rows: int
    truncated: bool


def plot_length_histogram(bins: Sequence[LengthBin], name: str, title: str) -> Plot:
    """Plot the number of rows by length, one bar per bin; bars of truncated rows are orange and labeled `cut`."""
    merged = merge_bins(bins)
    largest = max((bin_.rows for bin_ in merged), default=0) or 1
    total = sum(bin_.rows for bin_ in merged)
    with open_canvas(PLOT_WIDTH, ROW_HEIGHT * len(merged) + 30) as canvas:
        axes = _bar_axes(canvas)
        labels = [f"{bin_.low:,}–{bin_.high:,}" if bin_.high > bin_.low else f"{bin_.low:,}" for bin_ in merged]
        for row, bin_ in enumerate(merged):
            bar = axes.barh(
                row,
                bin_.rows,
                height=0.78,
                color=PLACEHOLDER_COLORS["loss" if bin_.truncated else "series-1"],
                hatch="////" if bin_.truncated else "",
                edgecolor=PLACEHOLDER_COLORS["surface"],
                linewidth=0,
            )
            tooltip = f"{labels[row]} tokens: {bin_.rows:,} rows, {bin_.rows / (total or 1):.1%}"
            canvas.add_tooltip(bar[0], f"bar-{row}", tooltip)
            label = f"{bin_.rows:,}" + (" cut" if bin_.truncated else "")
            add_label(axes, label, (bin_.rows, row), (4, 0), va="center")
        axes.set_yticks(range(len(merged)), labels)
        axes.set_ylim(len(merged) - 0.4, -0.6)
        axes.set_xlim(0, largest * 1.16)
        axes.set_title("tokens per row", loc="left", fontsize=TEXT_SIZE - 1, color=PLACEHOLDER_COLORS["muted"])
        cut = sum(bin_.rows for bin_ in merged if bin_.truncated)
        summary = f"{total:,} rows of {labels[0]} to {labels[-1]} tokens" if merged else "no row"
        return finish_plot(canvas, name, title, f"{summary}; {cut:,} rows are cut.")


def merge_bins(bins: Sequence[LengthBin]) -> list[LengthBin]:
    """Merge neighboring bins until at most `MAX_BINS` are left; truncated and complete rows are never mixed."""
    merged = list(bins)
    while len(merged) > MAX_BINS:
        halved = []
        for index in range(0, len(merged), 2):
            pair = merged[index : index + 2]
            if len(pair) == 2 and pair[0].truncated == pair[1].truncated:
                halved.append(LengthBin(pair[0].low, pair[1].high, pair[0].rows + pair[1].rows, pair[0].truncated))
            else:
                halved += pair
        if len(halved) == len(merged):
            break
        merged = halved
    return merged


def plot_source_shares(shares_by_stage: Mapping[str, Mapping[str, float]], name: str, title: str) -> Plot:
    """Plot one bar per stage, divided among its sources.

    Args:
        shares_by_stage: Stage -> source -> share; the shares of a stage sum to about 1.
        name: File name of the plot.
        title: Title of the plot.
    """
    sources = list(dict.fromkeys(source for shares in shares_by_stage.values() for source in shares))
    legend_rows = 1 + (len(sources) - 1) // 3
    with open_canvas(PLOT_WIDTH, 30 * len(shares_by_stage) + 27 + 17 * legend_rows) as canvas:
        axes = _bar_axes(canvas)
        for row, (stage, shares) in enumerate(shares_by_stage.items()):
            start = 0.0
            for index, source in enumerate(sources):
                share = shares.get(source, 0.0)
                bar = axes.barh(
                    row,
                    share,
                    left=start,
                    height=0.66,
                    color=series_color(index),
                    hatch=HATCHES[index % len(HATCHES)],
                    edgecolor=PLACEHOLDER_COLORS["surface"],
                    linewidth=0.8,
                    label="_" if row else legend_label(source),
                )
                tooltip = f"{plot_label(source)} in {plot_label(stage)}: {share:.1%}"
                canvas.add_tooltip(bar[0], f"bar-{row}-{index}", tooltip)
                if share > MIN_LABELED_SHARE:
                    axes.text(
                        start + share / 2,
                        row,
                        f"{share:.0%}",
                        ha="center",
                        va="center",
                        fontsize=TEXT_SIZE - 1,
                        bbox={"boxstyle": "round,pad=0.25", "fc": PLACEHOLDER_COLORS["surface"], "ec": "none"},
                    )
                start += share
        axes.set_yticks(range(len(shares_by_stage)), [plot_label(stage, 16) for stage in shares_by_stage])
        axes.set_ylim(len(shares_by_stage) - 0.4, -0.6)
        axes.set_xlim(0, 1)
        canvas.figure.legend(loc="outside lower left", ncols=3, handlelength=1.2, columnspacing=1.2)
        descriptions = [
            f"{plot_label(stage)}: "
            + (", ".join(f"{plot_label(source)} {share:.1%}" for source, share in shares.items()) or MISSING)
            for stage, shares in shares_by_stage.items()
        ]
        return finish_plot(canvas, name, title, "; ".join(descriptions) + ".")


def _bar_axes(canvas: Canvas) -> Axes:
    """Add axes for horizontal bars that are labeled themselves."""
    (axes,) = canvas.add_axes()
    axes.grid(visible=False)
    axes.spines["bottom"].set_visible(False)
    axes.set_xticks([])
    return axes
