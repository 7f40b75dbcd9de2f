"""Lengths of rows as a picture for a terminal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.table import Table
from rich.text import Text

from harness.runner.data_check import EXTRA_COUNTS
from harness.utils.formatting import encodable_segments, one_line

FULL_BLOCK, FULL_BLOCK_ASCII = "█", "#"
KEPT_STYLE, TRUNCATED_STYLE = "cyan", "bold red"


EIGHTH_BLOCKS = " ▏▎▍▌▋▊▉"


class Histogram:
    """A picture of `lengths`, one line a bin, as wide as it is given room, with the limit drawn where it cuts.

    name: of the source, printable. Without Unicode the bars are made of #; what is cut is also said in words.
    """

    def __init__(self, name: str, summary: Mapping[str, Any]) -> None:
        self._name, self._summary = name, summary

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        facts = self._summary
        yield Text.assemble((self._name, "bold"), f": {facts['rows']:,} rows{_format_range(facts)}")
        ascii_only = options.ascii_only
        labels = [_format_bin_label(one, facts["max_length"], "-" if ascii_only else "–") for one in facts["bins"]]
        numbers = [f"{one['rows']:,}" for one in facts["bins"]]
        left, right = max(map(len, labels), default=0), max(map(len, numbers), default=0)
        room = max(min(options.max_width, 100) - left - right - 4, 4)
        most = max((one["rows"] for one in facts["bins"]), default=1)
        for one, label, number in zip(facts["bins"], labels, numbers, strict=True):
            cut = one["low"] > facts["max_length"]
            if cut:
                yield Text(_format_limit_line(facts, options.max_width, "-" if ascii_only else "╌"), style="red")
            bar = _format_bar(one["rows"] / most * room, ascii_only)
            line = Text.assemble(
                f"  {label:>{left}} ", (f"{bar:<{room}}", TRUNCATED_STYLE if cut else KEPT_STYLE), f" {number:>{right}}"
            )
            line.no_wrap = True
            yield line
        if facts["rows"]:
            yield Text(_format_truncation(facts), style="red" if facts["rows_cut"] else "dim")


def _format_range(summary: Mapping[str, Any]) -> str:
    if not summary["rows"]:
        return ""
    if summary["min"] == summary["max"]:
        return f" of {summary['max']:,} tokens"
    return (
        f" of {summary['min']:,} to {summary['max']:,} tokens, median {summary['median']:,}, mean {summary['mean']:,.0f}, "
        f"p90 {summary['p90']:,}, p99 {summary['p99']:,}"
    )


def _format_bin_label(bin_: Mapping[str, int], max_length: int, dash: str) -> str:
    if bin_["low"] > max_length:
        return "longer"
    return f"{bin_['low']:,}" if bin_["low"] == bin_["high"] else f"{bin_['low']:,}{dash}{bin_['high']:,}"


def _format_limit_line(summary: Mapping[str, Any], width: int, dash: str) -> str:
    said = f" max_length {summary['max_length']:,} "
    return "  " + dash * 2 + said + dash * max(min(width, 100) - len(said) - 4, 0)


def _format_bar(length: float, ascii_only: bool) -> str:
    """A bar of a length in characters; what is not nothing is seen."""
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


STATUS_MARKS = {"proven": ("✓", "green"), "warned": ("!", "yellow"), "failed": ("✗", "bold red"), "open": ("·", "dim")}


def format_check(report: Mapping[str, Any]) -> RenderableType:
    """What `harness.runner.data_check.run_data_checks` made, for a terminal of any width, with or without colour and Unicode."""
    return _CheckTable(report)


class _CheckTable:
    def __init__(self, report: Mapping[str, Any]) -> None:
        self._made = report

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield from encodable_segments(Group(*_check_parts(self._made)), console, options)


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
    for one in report["proofs"]:
        mark, style = STATUS_MARKS[_check_status(one)]
        table.add_row(Text(mark, style), Text(one["name"], "bold"), Text(one_line(one["told"], 2000)))
    yield table
    count = len(report["failures"])
    verdict = ("may run", "green") if report["ok"] else (f"must not run: {count} error{'s' * (count != 1)}", "bold red")
    yield Text.assemble((one_line(report["name"]), "bold"), ": ", verdict)


def _check_status(check: Mapping[str, Any]) -> str:
    if check["ok"] is None:
        return "open"
    return "failed" if not check["ok"] else "warned" if check["warned"] else "proven"
