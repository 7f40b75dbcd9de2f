"""Building blocks of everything that is printed as a table: pages, tables, intervals and shortened answers."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from rich import box
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.table import Table
from rich.text import Text

from harness.report.display_text import Interval, format_interval
from harness.utils.formatting import encodable_segments, printable, shorten_text

VERDICT_STYLES = {
    "better": "bold green",
    "worse": "bold red",
    "different": "bold",
    "no evidence": "dim",
    "too few items": "yellow",
    "unusable": "bold red",
}
GATE_STYLES = {"passed": "green", "failed": "bold red", "not enough evidence": "bold yellow"}
MAX_ANSWER_CHARS = 400


class TerminalPage:
    """Parts below one another, built for the width of the console that prints them.

    Characters that the console's stream cannot encode are replaced.

    Args:
        build_parts: Maps the width of the console, in columns, to the parts.
    """

    def __init__(self, build_parts: Callable[[int], Iterator[RenderableType]]) -> None:
        self._build_parts = build_parts

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield from encodable_segments(Group(*self._build_parts(options.max_width)), console, options)


def new_table(*columns: str) -> Table:
    """Build an empty table without borders whose columns fold long text."""
    # The gaps are narrow: four columns of figures just fit into 80 characters.
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0), show_edge=False)
    for name in columns:
        table.add_column(Text(name), overflow="fold")
    return table


def interval_text(interval: Interval, style: str = "") -> Text:
    """Format a difference in the given style with its dimmed 95 % interval."""
    value, bounds = format_interval(interval)
    return Text.assemble((value, style), (f" {bounds}", "dim"))


def shorten_answer(text: str, style: str, max_lines: int = 8) -> Text:
    """Format a text of the model or the data, shortened so that the rest of the page stays on the screen.

    Args:
        text: The text; it may hold anything.
        style: Style of rich.
        max_lines: Lines that are shown; the rest is counted.
    """
    if not text.strip():
        return Text("(empty)", style="dim italic")
    lines = printable(text.strip()).splitlines()
    more = [f"… (+{len(lines) - max_lines} lines)"] if len(lines) > max_lines else []
    return Text(shorten_text("\n".join([*lines[:max_lines], *more]), MAX_ANSWER_CHARS), style=style)


def mark_cut(answer: Text, cut: bool) -> Text:
    """Mark an answer that was cut at `max_new_tokens`."""
    return Text.assemble(answer, (" (cut)", "yellow")) if cut else answer
