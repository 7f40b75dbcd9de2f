"""A check for people: its proofs as a short table, and the lengths of each source as a picture."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.table import Table
from rich.text import Text

from harness.check.proofs import BESIDE
from harness.data.histogram import Histogram
from harness.legible import encodable, one_line

MARKS = {"proven": ("✓", "green"), "warned": ("!", "yellow"), "failed": ("✗", "bold red"), "open": ("·", "dim")}


def render(made: Mapping[str, Any]) -> RenderableType:
    """What `harness.check.make` made, for a terminal of any width, with or without colour and Unicode."""
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
