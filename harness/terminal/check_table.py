"""Lengths of rows as a picture for a terminal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.table import Table
from rich.text import Text

from harness.runner.data_check import BESIDE
from harness.utils.formatting import encodable, one_line

FULL, FULL_ASCII = "█", "#"
KEPT, CUT = "cyan", "bold red"


EIGHTHS = " ▏▎▍▌▋▊▉"


class Histogram:
    """A picture of `lengths`, one line a bin, as wide as it is given room, with the limit drawn where it cuts.

    name: of the source, printable. Without Unicode the bars are made of #; what is cut is also said in words.
    """

    def __init__(self, name: str, facts: Mapping[str, Any]) -> None:
        self._name, self._facts = name, facts

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        facts = self._facts
        yield Text.assemble((self._name, "bold"), f": {facts['rows']:,} rows{_spread(facts)}")
        ascii_only = options.ascii_only
        labels = [_label(one, facts["max_length"], "-" if ascii_only else "–") for one in facts["bins"]]
        numbers = [f"{one['rows']:,}" for one in facts["bins"]]
        left, right = max(map(len, labels), default=0), max(map(len, numbers), default=0)
        room = max(min(options.max_width, 100) - left - right - 4, 4)
        most = max((one["rows"] for one in facts["bins"]), default=1)
        for one, label, number in zip(facts["bins"], labels, numbers, strict=True):
            cut = one["low"] > facts["max_length"]
            if cut:
                yield Text(_limit(facts, options.max_width, "-" if ascii_only else "╌"), style="red")
            bar = _bar(one["rows"] / most * room, ascii_only)
            line = Text.assemble(f"  {label:>{left}} ", (f"{bar:<{room}}", CUT if cut else KEPT), f" {number:>{right}}")
            line.no_wrap = True
            yield line
        if facts["rows"]:
            yield Text(_cut(facts), style="red" if facts["rows_cut"] else "dim")


def _spread(facts: Mapping[str, Any]) -> str:
    if not facts["rows"]:
        return ""
    if facts["min"] == facts["max"]:
        return f" of {facts['max']:,} tokens"
    return (
        f" of {facts['min']:,} to {facts['max']:,} tokens, median {facts['median']:,}, mean {facts['mean']:,.0f}, "
        f"p90 {facts['p90']:,}, p99 {facts['p99']:,}"
    )


def _label(one: Mapping[str, int], max_length: int, dash: str) -> str:
    if one["low"] > max_length:
        return "longer"
    return f"{one['low']:,}" if one["low"] == one["high"] else f"{one['low']:,}{dash}{one['high']:,}"


def _limit(facts: Mapping[str, Any], width: int, dash: str) -> str:
    said = f" max_length {facts['max_length']:,} "
    return "  " + dash * 2 + said + dash * max(min(width, 100) - len(said) - 4, 0)


def _bar(length: float, ascii_only: bool) -> str:
    """A bar of a length in characters; what is not nothing is seen."""
    if ascii_only:
        return FULL_ASCII * (max(round(length), 1) if length else 0)
    eighths = max(round(length * 8), 1) if length else 0
    return FULL * (eighths // 8) + (EIGHTHS[eighths % 8] if eighths % 8 else "")


def _cut(facts: Mapping[str, Any]) -> str:
    if not facts["rows_cut"]:
        return f"  nothing is cut: max_length is {facts['max_length']:,}"
    rows, tokens = facts["rows_cut"] / facts["rows"], facts["tokens_cut"] / facts["tokens"]
    return (
        f"  cut: {facts['rows_cut']:,} row(s) ({100 * rows:.1f} %) lose {facts['tokens_cut']:,} tokens "
        f"({100 * tokens:.1f} % of all) at their ends"
    )


MARKS = {"proven": ("✓", "green"), "warned": ("!", "yellow"), "failed": ("✗", "bold red"), "open": ("·", "dim")}


def render(made: Mapping[str, Any]) -> RenderableType:
    """What `harness.runner.data_check.make` made, for a terminal of any width, with or without colour and Unicode."""
    return _Page(made)


class _Page:
    def __init__(self, made: Mapping[str, Any]) -> None:
        self._made = made

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield from encodable(Group(*_page(self._made)), console, options)


def _page(made: Mapping[str, Any]) -> Iterator[RenderableType]:
    for name, counts in made.get("sources", {}).items():
        parts = [f"{count:,} {key.replace('_', ' ')}" for key, count in counts.items() if count and key not in BESIDE]
        yield Text.assemble((one_line(name), "bold"), f": {counts['read']:,} rows read = {' + '.join(parts) or '0'}")
        for lengths in made["lengths"].get(name, ()):
            yield Histogram("in training", lengths)
    if made.get("sources"):
        yield Text("")
    table = Table.grid(padding=(0, 1, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for one in made["proofs"]:
        mark, style = MARKS[_state(one)]
        table.add_row(Text(mark, style), Text(one["name"], "bold"), Text(one_line(one["told"], 2000)))
    yield table
    count = len(made["failures"])
    verdict = ("may run", "green") if made["ok"] else (f"must not run: {count} error{'s' * (count != 1)}", "bold red")
    yield Text.assemble((one_line(made["name"]), "bold"), ": ", verdict)


def _state(proof: Mapping[str, Any]) -> str:
    if proof["ok"] is None:
        return "open"
    return "failed" if not proof["ok"] else "warned" if proof["warned"] else "proven"
