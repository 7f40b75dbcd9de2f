"""Bars: how long the rows of a source are, and what the sources of each stage were of its mixture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

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
)
from harness.utils.formatting import MISSING

ROW_HEIGHT = 19.0
MAX_BINS = 14
HATCHES = ("", "////", "....", "\\\\\\\\", "xxxx", "++++")


@dataclass(frozen=True)
class LengthBin:
    """Rows of `low` to `high` tokens, both inclusive. truncated: whether they are longer than what is kept of a row."""

    low: int
    high: int
    rows: int
    truncated: bool


def plot_length_histogram(bins: Sequence[LengthBin], name: str, title: str) -> Plot:
    """A histogram of tokens a row, one bar a bin; bars of rows that are cut are orange and say so."""
    shown = merge_bins(bins)
    most = max((one.rows for one in shown), default=0) or 1
    total = sum(one.rows for one in shown) or 1
    with open_canvas(PLOT_WIDTH, ROW_HEIGHT * len(shown) + 30) as drawing:
        (axes,) = drawing.add_axes()
        axes.grid(visible=False)
        axes.spines["bottom"].set_visible(False)
        names = [f"{one.low:,}–{one.high:,}" if one.high > one.low else f"{one.low:,}" for one in shown]
        for place, one in enumerate(shown):
            bar = axes.barh(
                place, one.rows, height=0.78, color=PLACEHOLDER_COLORS["loss" if one.truncated else "series-1"],
                hatch="////" if one.truncated else "", edgecolor=PLACEHOLDER_COLORS["surface"], linewidth=0,
            )  # fmt: skip
            drawing.add_tooltip(
                bar[0], f"bar-{place}", f"{names[place]} tokens: {one.rows:,} rows, {one.rows / total:.1%}"
            )
            told = f"{one.rows:,}" + (" cut" if one.truncated else "")
            axes.annotate(
                told, (one.rows, place), xytext=(4, 0), textcoords="offset points", va="center", fontsize=TEXT_SIZE - 1
            )
        axes.set_yticks(range(len(shown)), names)
        axes.set_ylim(len(shown) - 0.4, -0.6)
        axes.set_xlim(0, most * 1.16)
        axes.set_xticks([])
        axes.set_title("tokens a row", loc="left", fontsize=TEXT_SIZE - 1, color=PLACEHOLDER_COLORS["muted"])
        cut = sum(one.rows for one in shown if one.truncated)
        told = f"{total:,} rows of {names[0]} to {names[-1]} tokens" if shown else "no row"
        return finish_plot(drawing, name, title, f"{told}; {cut:,} rows are cut.")


def merge_bins(bins: Sequence[LengthBin]) -> list[LengthBin]:
    """The bins, neighbours of one kind joined until there are few enough to read."""
    shown = list(bins)
    while len(shown) > MAX_BINS:
        joined = []
        for index in range(0, len(shown), 2):
            pair = shown[index : index + 2]
            if len(pair) == 2 and pair[0].truncated == pair[1].truncated:
                joined.append(LengthBin(pair[0].low, pair[1].high, pair[0].rows + pair[1].rows, pair[0].truncated))
            else:
                joined += pair
        if len(joined) == len(shown):
            break
        shown = joined
    return shown


def plot_source_shares(shares_by_stage: Mapping[str, Mapping[str, float]], name: str, title: str) -> Plot:
    """One bar a stage, divided among its sources. shares_by_stage: stage -> source -> share; each sums to about 1."""
    sources = list(dict.fromkeys(source for stage in shares_by_stage.values() for source in stage))
    with open_canvas(PLOT_WIDTH, 30 * len(shares_by_stage) + 44 + 17 * ((len(sources) - 1) // 3)) as drawing:
        (axes,) = drawing.add_axes()
        axes.grid(visible=False)
        axes.spines["bottom"].set_visible(False)
        for place, (stage, parts) in enumerate(shares_by_stage.items()):
            start = 0.0
            for number, source in enumerate(sources):
                share = parts.get(source, 0.0)
                bar = axes.barh(
                    place, share, left=start, height=0.66, color=series_color(number), hatch=HATCHES[number % len(HATCHES)],
                    edgecolor=PLACEHOLDER_COLORS["surface"], linewidth=0.8, label="_" if place else legend_label(source),
                )  # fmt: skip
                drawing.add_tooltip(
                    bar[0], f"bar-{place}-{number}", f"{plot_label(source)} in {plot_label(stage)}: {share:.1%}"
                )
                if share > 0.09:
                    axes.text(
                        start + share / 2, place, f"{share:.0%}", ha="center", va="center", fontsize=TEXT_SIZE - 1,
                        bbox={"boxstyle": "round,pad=0.25", "fc": PLACEHOLDER_COLORS["surface"], "ec": "none"},
                    )  # fmt: skip
                start += share
        axes.set_yticks(range(len(shares_by_stage)), [plot_label(stage, 16) for stage in shares_by_stage])
        axes.set_ylim(len(shares_by_stage) - 0.4, -0.6)
        axes.set_xlim(0, 1)
        axes.set_xticks([])
        drawing.figure.legend(loc="outside lower left", ncols=3, handlelength=1.2, columnspacing=1.2)
        told = "; ".join(
            f"{plot_label(stage)}: "
            + (", ".join(f"{plot_label(s)} {share:.1%}" for s, share in parts.items()) or MISSING)
            for stage, parts in shares_by_stage.items()
        )
        return finish_plot(drawing, name, title, told + ".")
