"""How paired differences, and the items that changed most, look on a terminal and as plain text."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby

from rich import box
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from harness.compare import Changed, Comparison, Pair
from harness.compare.items import Answered
from harness.legible import decimals, number, one_line, p_value, printable, shorten

STYLES = {
    "better": "bold green",
    "worse": "bold red",
    "different": "bold",
    "no evidence": "dim",
    "too few items": "yellow",
}
WIDE = 104
"""Columns from which on the baseline's value and the test have columns of their own."""
LONGEST, LINES = 400, 6


def pairs_table(comparison: Comparison, width: int) -> Table:
    """Two runs: one row a score, suite by suite. More: one row a run within each score."""
    wide = width >= WIDE
    pairs = comparison.pairs_by_score()
    alone = len({one.run for one in pairs}) == 1
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0), show_edge=False)
    table.add_column("suite / score" if alone else f"against {comparison.baseline + 1}", overflow="fold")
    values = f"{comparison.baseline + 1} → {pairs[0].run + 1}" if alone else "value"
    table.add_column(values, justify="right", no_wrap=True)
    table.add_column("difference [95 % interval]", justify="right", no_wrap=True)
    table.add_column("p", justify="right", no_wrap=True)
    if wide:
        table.add_column("p by", no_wrap=True)
    table.add_column("verdict", no_wrap=True)
    for key, group in groupby(pairs, key=lambda one: (one.suite, "" if alone else one.score)):
        rows = list(group)
        if table.row_count:
            table.add_row()
        table.add_row(*_title(key, rows, alone))
        for one in rows:
            table.add_row(*_row(one, rows, alone, wide))
    return table


def pairs_notes(comparison: Comparison) -> Iterator[RenderableType]:
    """What the table's numbers mean, and what is not in it."""
    if comparison.pairs:
        base = comparison.runs[comparison.baseline]
        yield Text(
            f"difference to run {comparison.baseline + 1} ({one_line(base.name)}) over the same items; p after Holm's "
            f"correction for {len(comparison.pairs)} comparisons: McNemar's test of scores that are 0 or 1, paired "
            "bootstrap of other means, approximate randomisation of corpus scores; better and worse: the interval "
            "leaves 0 out and p is below 0.05; ~n: items that would give a verdict, if the difference is as large as "
            "it looks; ↓ lower is better",
            style="dim",
        )
    dropped = {(one.run, one.suite): one.dropped for one in comparison.pairs if one.dropped}
    for (run, suite), reasons in dropped.items():
        for why, count in reasons.items():
            text = f"{one_line(suite)} of run {run + 1}: {count:,} items left out, {one_line(why)}"
            yield Text(text, style="yellow")
    for run, what, why in comparison.left_out():
        shown = f"{one_line(what)} of " if what else ""
        yield Text(f"{shown}run {run + 1} not compared: {one_line(why)}", style="yellow")
    for note in comparison.notes:
        yield Text(one_line(note), style="yellow")


def items_grid(comparison: Comparison) -> Iterator[RenderableType]:
    """The items whose score changed most, each with what was asked and both answers."""
    for run, group in groupby(comparison.items, key=lambda one: one.run):
        items = list(group)
        count = f"the {len(items)} items" if len(items) > 1 else "the item"
        yield Text(f"{count} that changed most in {one_line(str(comparison.score))}, run {run + 1}", style="bold")
        grid = Table(box=None, show_header=False, pad_edge=False, padding=(0, 1))
        grid.add_column(no_wrap=True, style="dim")
        grid.add_column(overflow="fold")
        for index, one in enumerate(items):
            if index:
                grid.add_row()
            for label, text in _shown(one, comparison):
                grid.add_row(label, text)
        yield grid


def _title(key: tuple[str, str], rows: list[Pair], alone: bool) -> Iterator[Text]:
    first = rows[0]
    if alone:
        yield Text(one_line(first.suite), style="bold")
        yield Text()
    else:
        yield Text(f"{one_line(first.suite)}/{_name(first)}", style="bold")
        yield Text(number(first.first.value, _places(rows)), style="dim")
    yield Text(f"n = {first.n:,}" if len({one.n for one in rows}) == 1 else "", style="dim")


def _row(one: Pair, rows: list[Pair], alone: bool, wide: bool) -> Iterator[Text]:
    apart = f" (n = {one.n:,})" if len({other.n for other in rows}) > 1 else ""
    yield Text(f" {_name(one) if alone else one.run + 1}{apart}")
    first, second = (number(each.value, _places([one] if alone else rows)) for each in (one.first, one.second))
    yield Text(f"{first} → {second}" if alone else second)
    bounds = (one.difference.value, one.difference.low, one.difference.high)
    signs = decimals(bounds, digits=3)
    value, low, high = (number(bound, signs, sign=True) for bound in bounds)
    yield Text.assemble((value, STYLES[one.verdict]), (f" [{low}, {high}]", "dim"))
    yield Text(p_value(one.p_holm))
    if wide:
        yield Text(one.test, style="dim")
    needed = f"{' ' if wide else chr(10)}(~n {one.needed:,})" if one.needed else ""
    yield Text.assemble((one.verdict, STYLES[one.verdict]), (needed, "dim"))


def _name(one: Pair) -> str:
    return f"{one_line(one.score)}{' ↓' if one.higher_is_better is False else ''}"


def _places(rows: list[Pair]) -> int:
    return decimals([rows[0].first.value, *(one.second.value for one in rows)])


def _shown(one: Changed, comparison: Comparison) -> Iterator[tuple[str, Text]]:
    places = decimals([one.first.value, one.second.value])
    first, second = (number(each.value, places) for each in (one.first, one.second))
    style = "green" if one.change > 0 else "red"
    pair = next((p for p in comparison.pairs if (p.run, p.suite, p.score) == (one.run, one.suite, one.score)), None)
    if pair is not None and pair.higher_is_better is None:
        style = "bold"
    elif pair is not None and not pair.higher_is_better:
        style = "red" if one.change > 0 else "green"
    yield (
        "change",
        Text.assemble(
            (number(one.change, places, sign=True), style), (f"  {first} → {second}  {one_line(one.id)}", "dim")
        ),
    )
    yield "question", _quoted(one.prompt, "bold")
    yield "reference", _quoted(one.reference, "cyan")
    yield f"run {comparison.baseline + 1}", _answer(one.first)
    yield f"run {one.run + 1}", _answer(one.second)


def _answer(one: Answered) -> Text:
    if one.answer is None:
        return Text("(not kept)", style="dim italic")
    text = _quoted(one.answer, "")
    return Text.assemble(text, (" (cut off)", "yellow")) if one.finish == "length" else text


def _quoted(text: str, style: str) -> Text:
    if not text.strip():
        return Text("(nothing)", style="dim italic")
    lines = printable(text.strip()).splitlines()
    kept = "\n".join([*lines[:LINES], *([f"… (+{len(lines) - LINES} lines)"] if len(lines) > LINES else [])])
    return Text(shorten(kept, LONGEST), style=style)
