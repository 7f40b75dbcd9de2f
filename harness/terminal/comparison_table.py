"""How paired differences, and the items that changed most, look on a terminal and as plain text."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby

from rich import box
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.table import Table
from rich.text import Text

from harness.comparison.changed_items import ChangedItem, ItemAnswer
from harness.comparison.compare import Comparison
from harness.comparison.paired_scores import PairedScore
from harness.comparison.run_summary import FinalScore, RunSummary
from harness.utils.formatting import (
    MISSING,
    decimal_places,
    encodable_segments,
    format_duration,
    format_number,
    format_p_value,
    one_line,
    printable,
    shorten_text,
)

PAIR_VERDICT_STYLES = {
    "better": "bold green",
    "worse": "bold red",
    "different": "bold",
    "no evidence": "dim",
    "too few items": "yellow",
}
MIN_WIDE_WIDTH = 104
"""Columns from which on the baseline's value and the test have columns of their own."""
MAX_VALUE_CHARS, MAX_ANSWER_LINES = 400, 6


def pairs_table(comparison: Comparison, width: int) -> Table:
    """Two runs: one row a score, suite by suite. More: one row a run within each score."""
    wide = width >= MIN_WIDE_WIDTH
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
        table.add_row(*_group_title(key, rows, alone))
        for one in rows:
            table.add_row(*_pair_row(one, rows, alone, wide))
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
    for run, what, why in comparison.not_compared():
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
            for label, text in _item_rows(one, comparison):
                grid.add_row(label, text)
        yield grid


def _group_title(key: tuple[str, str], rows: list[PairedScore], single_run: bool) -> Iterator[Text]:
    first = rows[0]
    if single_run:
        yield Text(one_line(first.suite), style="bold")
        yield Text()
    else:
        yield Text(f"{one_line(first.suite)}/{_score_label(first)}", style="bold")
        yield Text(format_number(first.first.value, _decimals_of_values(rows)), style="dim")
    yield Text(f"n = {first.n:,}" if len({one.n for one in rows}) == 1 else "", style="dim")


def _pair_row(pair: PairedScore, rows: list[PairedScore], single_run: bool, wide: bool) -> Iterator[Text]:
    apart = f" (n = {pair.n:,})" if len({other.n for other in rows}) > 1 else ""
    yield Text(f" {_score_label(pair) if single_run else pair.run + 1}{apart}")
    first, second = (
        format_number(each.value, _decimals_of_values([pair] if single_run else rows))
        for each in (pair.first, pair.second)
    )
    yield Text(f"{first} → {second}" if single_run else second)
    bounds = (pair.difference.value, pair.difference.low, pair.difference.high)
    signs = decimal_places(bounds, digits=3)
    value, low, high = (format_number(bound, signs, sign=True) for bound in bounds)
    yield Text.assemble((value, PAIR_VERDICT_STYLES[pair.verdict]), (f" [{low}, {high}]", "dim"))
    yield Text(format_p_value(pair.p_holm))
    if wide:
        yield Text(pair.test, style="dim")
    needed = f"{' ' if wide else chr(10)}(~n {pair.needed:,})" if pair.needed else ""
    yield Text.assemble((pair.verdict, PAIR_VERDICT_STYLES[pair.verdict]), (needed, "dim"))


def _score_label(pair: PairedScore) -> str:
    return f"{one_line(pair.score)}{' ↓' if pair.higher_is_better is False else ''}"


def _decimals_of_values(rows: list[PairedScore]) -> int:
    return decimal_places([rows[0].first.value, *(one.second.value for one in rows)])


def _item_rows(item: ChangedItem, comparison: Comparison) -> Iterator[tuple[str, Text]]:
    places = decimal_places([item.first.value, item.second.value])
    first, second = (format_number(each.value, places) for each in (item.first, item.second))
    style = "green" if item.change > 0 else "red"
    pair = next((p for p in comparison.pairs if (p.run, p.suite, p.score) == (item.run, item.suite, item.score)), None)
    if pair is not None and pair.higher_is_better is None:
        style = "bold"
    elif pair is not None and not pair.higher_is_better:
        style = "red" if item.change > 0 else "green"
    yield (
        "change",
        Text.assemble(
            (format_number(item.change, places, sign=True), style),
            (f"  {first} → {second}  {one_line(item.id)}", "dim"),
        ),
    )
    yield "question", _shorten_answer(item.prompt, "bold")
    yield "reference", _shorten_answer(item.reference, "cyan")
    yield f"run {comparison.baseline + 1}", _format_answer(item.first)
    yield f"run {item.run + 1}", _format_answer(item.second)


def _format_answer(item_answer: ItemAnswer) -> Text:
    if item_answer.answer is None:
        return Text("(not kept)", style="dim italic")
    text = _shorten_answer(item_answer.answer, "")
    return Text.assemble(text, (" (cut off)", "yellow")) if item_answer.finish == "length" else text


def _shorten_answer(text: str, style: str) -> Text:
    if not text.strip():
        return Text("(nothing)", style="dim italic")
    lines = printable(text.strip()).splitlines()
    kept = "\n".join(
        [
            *lines[:MAX_ANSWER_LINES],
            *([f"… (+{len(lines) - MAX_ANSWER_LINES} lines)"] if len(lines) > MAX_ANSWER_LINES else []),
        ]
    )
    return Text(shorten_text(kept, MAX_VALUE_CHARS), style=style)


VERDICT_MARKS = {"better": ("✓", "green"), "worse": ("✗", "red"), "no evidence": ("·", "dim")}
LONGEST_ADVICE = 40


@dataclass(frozen=True)
class ComparisonTable:
    """The whole comparison as one renderable; it measures the console that it is shown on."""

    comparison: Comparison

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield from encodable_segments(Group(*self._parts(options.max_width)), console, options)

    def _parts(self, width: int) -> Iterator[RenderableType]:
        comparison = self.comparison
        yield runs_table(comparison)
        yield Text()
        yield from run_scores_tables(comparison, width)
        yield Text(
            "after the last stage, and the difference to the base model (✓ better, ✗ worse, · no evidence); "
            "in brackets: the run has not come to its end",
            style="dim",
        )
        if len(comparison.runs) > 1:
            yield Text()
            yield from self._pairs_and_items(width)
            yield from differences_tables(comparison, width)

    def _pairs_and_items(self, width: int) -> Iterator[RenderableType]:
        comparison = self.comparison
        if comparison.pairs:
            yield pairs_table(comparison, width)
        yield from pairs_notes(comparison)
        if comparison.pairs or comparison.not_comparable:
            yield Text()
        # Ten items for each of many runs would bury the table; JSON and the page always have them.
        if comparison.items and (len(comparison.runs) == 2 or comparison.score_requested):
            yield from items_grid(comparison)
            yield Text()


def runs_table(comparison: Comparison) -> Table:
    """One row a run: its number, name and id, how it trained, how it ended and how long it took."""
    table = _new_table("run", "how it trained", "ended")
    for number_, run in enumerate(comparison.runs, start=1):
        trained = Text(
            f"{run.mode}: {run.mitigations or 'no mitigation'}\nlearning rate {run.learning_rate or MISSING}"
        )
        took = "" if run.seconds is None else format_duration(run.seconds)
        style = {"finished": "green", "failed": "bold red"}.get(run.status, "yellow")
        table.add_row(
            str(number_),
            Text.assemble((one_line(run.name), "bold"), "\n", (run.run_id, "dim")),
            trained,
            Text.assemble((run.status, style), "\n", (took, "dim")),
        )
    return table


def run_scores_tables(comparison: Comparison, width: int) -> Iterator[RenderableType]:
    """For each suite one row a run and one column a score; as many columns beside each other as the width holds."""
    suites: dict[str, list[str]] = {}
    for key in dict.fromkeys(key for run in comparison.runs for key in run.scores):
        suites.setdefault(key.partition("/")[0], []).append(key)
    for suite, keys in suites.items():
        columns = {key: [_score_cell(run, key, comparison) for run in comparison.runs] for key in keys}
        for index, some in enumerate(_columns_that_fit(columns, width - 4)):
            if not index:
                yield Text(one_line(suite), style="bold")
            table = _new_table(*(one_line(key.partition("/")[2]) for key in some), justify="right")
            for row in range(len(comparison.runs)):
                table.add_row(str(row + 1), *(columns[key][row] for key in some))
            yield table


def differences_tables(comparison: Comparison, width: int) -> Iterator[RenderableType]:
    """The keys of the spec that are not the same in every run, with their values."""
    if not comparison.differences:
        yield Text("their specs do not differ", style="dim")
        return
    yield Text("what differs in their specs", style="bold")
    keys = list(comparison.differences)
    columns = {
        key: [
            Text(MISSING if value is None else one_line(value, LONGEST_ADVICE)) for value in comparison.differences[key]
        ]
        for key in keys
    }
    for some in _columns_that_fit(columns, width - 4):
        table = _new_table(*some)
        for row in range(len(comparison.runs)):
            table.add_row(str(row + 1), *(columns[key][row] for key in some))
        yield table


def _score_cell(run: RunSummary, key: str, comparison: Comparison) -> Text:
    score = run.scores.get(key)
    if score is None:
        return Text(MISSING, style="dim")
    scores = [one.scores[key] for one in comparison.runs if key in one.scores]
    value = format_number(score.value, decimal_places(one.value for one in scores))
    if score.delta is None:
        return Text(f"({value})", style="dim")
    mark, style = VERDICT_MARKS.get(score.verdict or "", (" ", ""))
    return Text.assemble(value, (f" {_format_delta(score, scores)} {mark}", style))


def _format_delta(score: FinalScore, scores: list[FinalScore]) -> str:
    places = decimal_places((one.delta for one in scores if one.delta is not None), digits=3)
    return format_number(score.delta, places, sign=True)


def _columns_that_fit(columns: dict[str, list[Text]], width: int) -> Iterator[list[str]]:
    """The keys of the columns in groups, each as wide as the terminal holds."""
    group: list[str] = []
    taken = 0
    for key, cells in columns.items():
        needed = max(len(key.partition("/")[2] or key), *(cell.cell_len for cell in cells)) + 2
        if group and taken + needed > width:
            yield group
            group, taken = [], 0
        group.append(key)
        taken += needed
    if group:
        yield group


def _new_table(*columns: str, justify: str = "left") -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0), show_edge=False)
    table.add_column("#", style="bold cyan", justify="right", no_wrap=True)
    for column in columns:
        table.add_column(Text(column), justify=justify, overflow="fold")  # type: ignore[arg-type]
    return table
