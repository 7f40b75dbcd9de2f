"""The result of the data checks as tables for a terminal, with histograms of row lengths."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.table import Table
from rich.text import Text

from harness.runner.data_check import EXTRA_COUNTS
from harness.terminal.tables import TerminalPage
from harness.utils.formatting import one_line

FULL_BLOCK, FULL_BLOCK_ASCII = "█", "#"
EIGHTH_BLOCKS = " ▏▎▍▌▋▊▉"
KEPT_STYLE, TRUNCATED_STYLE = "cyan", "bold red"
MAX_HISTOGRAM_WIDTH = 100

STATUS_MARKS = {
    "verified": ("✓", "green"),
    "warned": ("!", "yellow"),
    "failed": ("✗", "bold red"),
    "skipped": ("·", "dim"),
}


def format_check(report: Mapping[str, Any]) -> RenderableType:
    """Build the result of the data checks: counts and lengths of each source, one row per check, and the verdict.

    Args:
        report: Result of `harness.runner.data_check.run_data_checks`.
    """
    return TerminalPage(lambda width: _check_parts(report))


def _check_parts(report: Mapping[str, Any]) -> Iterator[RenderableType]:
    for name, counts in report.get("sources", {}).items():
        parts = [
            f"{count:,} {key.replace('_', ' ')}" for key, count in counts.items() if count and key not in EXTRA_COUNTS
        ]
        yield Text.assemble((one_line(name), "bold"), f": {counts['read']:,} rows read = {' + '.join(parts) or '0'}")
        for lengths in report["lengths"].get(name, ()):
            yield Histogram("in training", lengths)
    if report.get("sources"):
        yield Text("")
    table = Table.grid(padding=(0, 1, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for check in report["proofs"]:
        mark, style = STATUS_MARKS[_check_status(check)]
        table.add_row(Text(mark, style), Text(check["name"], "bold"), Text(one_line(check["told"], 2000)))
    yield table
    count = len(report["failures"])
    verdict = ("may run", "green") if report["ok"] else (f"must not run: {count} error{'s' * (count != 1)}", "bold red")
    yield Text.assemble((one_line(report["name"]), "bold"), ": ", verdict)


def _check_status(check: Mapping[str, Any]) -> str:
    if check["ok"] is None:
        return "skipped"
    return "failed" if not check["ok"] else "warned" if check["warned"] else "verified"


class Histogram:
    """A histogram of row lengths, one line per bin, as wide as the console, with a line at `max_length`.

    Bars are drawn with `#` on a console without Unicode. A line of text also states what is cut.

    Args:
        name: Name of the source, printable.
        summary: Bins and totals, an entry of `lengths` in `run_data_checks`; lengths in tokens.
    """

    def __init__(self, name: str, summary: Mapping[str, Any]) -> None:
        self._name, self._summary = name, summary

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        summary, ascii_only = self._summary, options.ascii_only
        bins, max_length = summary["bins"], summary["max_length"]
        yield Text.assemble((self._name, "bold"), f": {summary['rows']:,} rows{_format_range(summary)}")
        labels = [_format_bin_label(bin_, max_length, "-" if ascii_only else "–") for bin_ in bins]
        counts = [f"{bin_['rows']:,}" for bin_ in bins]
        label_width, count_width = max(map(len, labels), default=0), max(map(len, counts), default=0)
        bar_width = max(min(options.max_width, MAX_HISTOGRAM_WIDTH) - label_width - count_width - 4, 4)
        largest = max((bin_["rows"] for bin_ in bins), default=1)
        for bin_, label, count in zip(bins, labels, counts, strict=True):
            truncated = bin_["low"] > max_length
            if truncated:
                yield Text(_format_limit_line(summary, options.max_width, "-" if ascii_only else "╌"), style="red")
            bar = _format_bar(bin_["rows"] / largest * bar_width, ascii_only)
            line = Text.assemble(
                f"  {label:>{label_width}} ",
                (f"{bar:<{bar_width}}", TRUNCATED_STYLE if truncated else KEPT_STYLE),
                f" {count:>{count_width}}",
            )
            line.no_wrap = True
            yield line
        if summary["rows"]:
            yield Text(_format_truncation(summary), style="red" if summary["rows_cut"] else "dim")


def _format_range(summary: Mapping[str, Any]) -> str:
    if not summary["rows"]:
        return ""
    if summary["min"] == summary["max"]:
        return f" of {summary['max']:,} tokens"
    return (
        f" of {summary['min']:,} to {summary['max']:,} tokens, median {summary['median']:,}, "
        f"mean {summary['mean']:,.0f}, p90 {summary['p90']:,}, p99 {summary['p99']:,}"
    )


def _format_bin_label(bin_: Mapping[str, int], max_length: int, dash: str) -> str:
    if bin_["low"] > max_length:
        return "longer"
    return f"{bin_['low']:,}" if bin_["low"] == bin_["high"] else f"{bin_['low']:,}{dash}{bin_['high']:,}"


def _format_limit_line(summary: Mapping[str, Any], width: int, dash: str) -> str:
    label = f" max_length {summary['max_length']:,} "
    return "  " + dash * 2 + label + dash * max(min(width, MAX_HISTOGRAM_WIDTH) - len(label) - 4, 0)


def _format_bar(length: float, ascii_only: bool) -> str:
    """Draw a bar of a length in characters; a length above 0 is always visible."""
    if ascii_only:
        return FULL_BLOCK_ASCII * (max(round(length), 1) if length else 0)
    eighths = max(round(length * 8), 1) if length else 0
    return FULL_BLOCK * (eighths // 8) + (EIGHTH_BLOCKS[eighths % 8] if eighths % 8 else "")


def _format_truncation(summary: Mapping[str, Any]) -> str:
    if not summary["rows_cut"]:
        return f"  nothing is cut: max_length is {summary['max_length']:,}"
    rows, tokens = summary["rows_cut"] / summary["rows"], summary["tokens_cut"] / summary["tokens"]
    return (
        f"  cut: {summary['rows_cut']:,} row(s) ({100 * rows:.1f} %) lose {summary['tokens_cut']:,} tokens "
        f"({100 * tokens:.1f} % of all) at their ends"
    )
