"""The comparison of runs as tables for a terminal of any width, and as plain text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Literal

from rich.console import Console, RenderableType
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from harness.comparison.changed_items import ChangedItem
from harness.comparison.compare import Comparison
from harness.comparison.methods import MethodComparison
from harness.comparison.paired_scores import PairedScore, count_hypotheses
from harness.comparison.run_summary import FinalScore, RunSummary
from harness.report.flips import ItemAnswer
from harness.terminal.rating_table import format_section
from harness.terminal.tables import VERDICT_STYLES, TerminalPage, interval_text, mark_cut, new_table, shorten_answer
from harness.utils.formatting import (
    MISSING,
    decimal_places,
    format_duration,
    format_number,
    format_p_value,
    format_size,
    one_line,
)

VERDICT_MARKS = {"better": ("✓", "green"), "worse": ("✗", "red"), "no evidence": ("·", "dim")}
STATUS_STYLES = {"finished": "green", "failed": "bold red"}
MIN_WIDE_WIDTH = 104
"""Console width, in columns, from which on the test may have a column of its own."""
MAX_ANSWER_LINES = 6
MAX_VALUE_CHARS = 40
"""Characters of a value of the spec."""


def format_comparison(comparison: Comparison) -> RenderableType:
    """Build the complete comparison: runs, final scores, paired differences, changed items, spec differences."""
    return TerminalPage(lambda width: _comparison_parts(comparison, width))


def _comparison_parts(comparison: Comparison, width: int) -> Iterator[RenderableType]:
    if comparison.methods is not None:
        yield from _method_parts(comparison, comparison.methods)
        return
    yield runs_table(comparison)
    yield Text()
    yield from run_scores_tables(comparison, width)
    yield Text(
        "after the last stage, with the difference to the base model (✓ better, ✗ worse, · no evidence); "
        "in parentheses: the run is not finished",
        style="dim",
    )
    if len(comparison.runs) < 2:
        return
    yield Text()
    if comparison.pairs:
        yield pairs_table(comparison, width)
    yield from pairs_notes(comparison)
    if comparison.pairs or comparison.not_comparable:
        yield Text()
    for section in comparison.ratings:
        yield format_section(section)
        yield Text()
    # Ten items for each of many runs would bury the table; JSON and the page always have them.
    if comparison.items and (len(comparison.runs) == 2 or comparison.score_requested):
        yield from changed_items_parts(comparison)
        yield Text()
    yield from differences_tables(comparison, width)


def _method_parts(comparison: Comparison, methods: MethodComparison) -> Iterator[RenderableType]:
    """Build a table for each score, one row per method. Titles are above the tables, so that no name is broken."""
    order = list(methods.methods)
    ordered = sorted(methods.scores, key=lambda score: order.index(score.arm))
    for suite, name in dict.fromkeys((score.suite, score.score) for score in ordered):
        rows = [score for score in ordered if (score.suite, score.score) == (suite, name)]
        if comparison.score not in (None, f"{suite}/{name}"):
            continue
        arrow = " ↓" if rows[0].higher_is_better is False else ""
        yield Text(f"{one_line(suite)}/{one_line(name)}{arrow}", style="bold")
        table = new_table(f"against {one_line(methods.baseline)}")
        for title in ("mean", "sd", "difference [95 % interval]", "p", "verdict"):
            table.add_column(title, justify="left" if title == "verdict" else "right", no_wrap=True)
        places = decimal_places([score.after.value for score in rows])
        for score in rows:
            verdict = score.verdict or "baseline"
            table.add_row(
                one_line(score.arm),
                format_number(score.after.value, places),
                MISSING if score.after_spread is None else format_number(score.after_spread.sd, places),
                "" if score.against is None else interval_text(score.against),
                "" if score.p_holm is None else format_p_value(score.p_holm),
                Text(verdict, style=VERDICT_STYLES.get(verdict, "dim")),
            )
        yield table
        yield Text()
    counts = ", ".join(f"{one_line(method)}: {len(seeds)}" for method, seeds in methods.methods.items())
    yield Text(
        "mean and standard deviation over seeds; intervals of the differences over seeds and items; p adjusted for "
        f"{methods.num_comparisons:,} comparisons (Holm). Seeds: {counts}",
        style="dim",
    )
    for note in methods.notes:
        yield Text(one_line(note, 1000), style="yellow")


def runs_table(comparison: Comparison) -> Table:
    """Build one row per run: number, name and id, how it trained, how it ended and how long it took."""
    table = _numbered_table("run", "how it trained", "ended")
    for number, run in enumerate(comparison.runs, start=1):
        took = "" if run.seconds is None else format_duration(run.seconds)
        table.add_row(
            str(number),
            Text.assemble((one_line(run.name), "bold"), "\n", (run.run_id, "dim")),
            Text(f"{run.mode}: {run.mitigations or 'no mitigation'}\nlearning rate {run.learning_rate or MISSING}"),
            Text.assemble((run.status, STATUS_STYLES.get(run.status, "yellow")), "\n", (took, "dim")),
        )
    return table


def run_scores_tables(comparison: Comparison, width: int) -> Iterator[RenderableType]:
    """Build for each suite tables of one row per run and one column per score, as many columns as `width` holds."""
    suites: dict[str, list[str]] = {}
    for key in dict.fromkeys(key for run in comparison.runs for key in run.scores):
        suites.setdefault(key.partition("/")[0], []).append(key)
    for suite, keys in suites.items():
        yield Text(one_line(suite), style="bold")
        columns = {key: [_score_cell(run, key, comparison) for run in comparison.runs] for key in keys}
        for group in _columns_that_fit(columns, width - 4):
            table = _numbered_table(*(one_line(key.partition("/")[2]) for key in group), justify="right")
            for row in range(len(comparison.runs)):
                table.add_row(str(row + 1), *(columns[key][row] for key in group))
            yield table


def pairs_table(comparison: Comparison, width: int) -> Table:
    """Build the paired differences: for two runs one row per score, for more one row per run within each score.

    Columns that do not fit into `width` are left out, so that no name is broken: the test, then p, then the values.
    """
    widest = ("values", "difference", "p", "p by", "verdict")
    layouts: list[tuple[str, ...]] = [widest] if width >= MIN_WIDE_WIDTH else []
    layouts += [
        ("values", "difference", "p", "verdict"),
        ("values", "difference", "verdict"),
        ("difference", "verdict"),
    ]
    console = Console(width=10_000)
    tables = (_pairs_table_with(comparison, columns) for columns in layouts)
    fitting = (table for table in tables if Measurement.get(console, console.options, table).maximum <= width)
    return next(fitting, None) or _pairs_table_with(comparison, layouts[-1])


def _pairs_table_with(comparison: Comparison, columns: Sequence[str]) -> Table:
    pairs = comparison.pairs_by_score()
    single_run = len({pair.run for pair in pairs}) == 1
    table = new_table("suite / score" if single_run else f"against {comparison.baseline + 1}")
    titles = {
        "values": f"{comparison.baseline + 1} → {pairs[0].run + 1}" if single_run else "value",
        "difference": "difference [95 % interval]",
    }
    for column in columns:
        justify: Literal["left", "right"] = "left" if column in ("p by", "verdict") else "right"
        table.add_column(titles.get(column, column), justify=justify, no_wrap=True)
    for _, group in groupby(pairs, key=lambda pair: (pair.suite, "" if single_run else pair.score)):
        rows = list(group)
        if table.row_count:
            table.add_row()
        for cells in (_group_title(rows, single_run), *(_pair_cells(pair, rows, single_run, columns) for pair in rows)):
            table.add_row(cells["name"], *(cells.get(column, Text()) for column in columns))
    return table


def pairs_notes(comparison: Comparison) -> Iterator[RenderableType]:
    """Format what the numbers of `pairs_table` mean, and what it does not contain."""
    if comparison.pairs:
        baseline = comparison.runs[comparison.baseline]
        yield Text(
            f"difference to run {comparison.baseline + 1} ({one_line(baseline.name)}) over the same items; p after "
            f"Holm's correction for {count_hypotheses(comparison.pairs)} comparisons: McNemar's test of scores that "
            "are 0 or 1, paired t-test of other means, ratios and perplexities, approximate randomisation of BLEU and "
            "chrF; better and worse: the interval excludes 0 and p is below 0.05; ~n: items needed for a verdict with "
            "80 % probability if the true difference is as large as the estimate; ↓ lower is better",
            style="dim",
        )
    dropped = {(pair.run, pair.suite): pair.dropped for pair in comparison.pairs if pair.dropped}
    for (run, suite), reasons in dropped.items():
        for reason, count in reasons.items():
            text = f"{one_line(suite)} of run {run + 1}: {count:,} items left out, {one_line(reason)}"
            yield Text(text, style="yellow")
    for run, what, reason in comparison.not_compared():
        prefix = f"{one_line(what)} of " if what else ""
        yield Text(f"{prefix}run {run + 1} not compared: {one_line(reason)}", style="yellow")
    for note in comparison.notes:
        yield Text(one_line(note), style="yellow")


def changed_items_parts(comparison: Comparison) -> Iterator[RenderableType]:
    """Format the items whose score changed most, each with its question, its reference and both answers."""
    for run, group in groupby(comparison.items, key=lambda item: item.run):
        items = list(group)
        count = f"the {len(items)} items" if len(items) > 1 else "the item"
        yield Text(f"{count} that changed most in {one_line(str(comparison.score))}, run {run + 1}", style="bold")
        grid = Table(box=None, show_header=False, pad_edge=False, padding=(0, 1))
        grid.add_column(no_wrap=True, style="dim")
        grid.add_column(overflow="fold")
        for index, item in enumerate(items):
            if index:
                grid.add_row()
            for label, text in _item_rows(item, comparison):
                grid.add_row(label, text)
        yield grid


def differences_tables(comparison: Comparison, width: int) -> Iterator[RenderableType]:
    """Build tables of the spec keys whose values differ, one column per key, as many columns as `width` holds."""
    if not comparison.differences:
        yield Text("the specs do not differ", style="dim")
        return
    yield Text("differences of the specs", style="bold")
    columns = {
        key: [Text(MISSING if value is None else one_line(value, MAX_VALUE_CHARS)) for value in values]
        for key, values in comparison.differences.items()
    }
    for group in _columns_that_fit(columns, width - 4):
        table = _numbered_table(*group)
        for row in range(len(comparison.runs)):
            table.add_row(str(row + 1), *(columns[key][row] for key in group))
        yield table


def _group_title(pairs: Sequence[PairedScore], single_run: bool) -> dict[str, Text]:
    """Return column -> cell of the row above a suite, or above a score of several runs."""
    first = pairs[0]
    size = f"n = {format_size(first.n, first.difference.groups)}" if len({pair.n for pair in pairs}) == 1 else ""
    cells = {"name": Text(one_line(first.suite), style="bold"), "difference": Text(size, style="dim")}
    if not single_run:
        cells["name"] = Text(f"{one_line(first.suite)}/{_score_label(first)}", style="bold")
        cells["values"] = Text(format_number(first.first.value, _decimals_of_values(pairs)), style="dim")
    return cells


def _pair_cells(
    pair: PairedScore, pairs: Sequence[PairedScore], single_run: bool, columns: Sequence[str]
) -> dict[str, Text]:
    """Return column -> cell of one difference."""
    count = f" (n = {format_size(pair.n, pair.difference.groups)})" if len({other.n for other in pairs}) > 1 else ""
    places = _decimals_of_values([pair] if single_run else pairs)
    first, second = (format_number(estimate.value, places) for estimate in (pair.first, pair.second))
    separator = " " if "p by" in columns else "\n"
    needed = f"{separator}(~n {pair.needed:,})" if pair.needed else ""
    return {
        "name": Text(f" {_score_label(pair) if single_run else pair.run + 1}{count}"),
        "values": Text(f"{first} → {second}" if single_run else second),
        "difference": interval_text(pair.difference, VERDICT_STYLES[pair.verdict]),
        "p": Text(format_p_value(pair.p_holm)),
        "p by": Text(pair.test, style="dim"),
        "verdict": Text.assemble((pair.verdict, VERDICT_STYLES[pair.verdict]), (needed, "dim")),
    }


def _score_label(pair: PairedScore) -> str:
    return f"{one_line(pair.score)}{' ↓' if pair.higher_is_better is False else ''}"


def _decimals_of_values(pairs: Sequence[PairedScore]) -> int:
    return decimal_places([pairs[0].first.value, *(pair.second.value for pair in pairs)])


def _item_rows(item: ChangedItem, comparison: Comparison) -> Iterator[tuple[str, Text]]:
    places = decimal_places([item.first.value, item.second.value])
    first, second = (format_number(answer.value, places) for answer in (item.first, item.second))
    style = "green" if item.change > 0 else "red"
    pair = next((p for p in comparison.pairs if (p.run, p.suite, p.score) == (item.run, item.suite, item.score)), None)
    if pair is not None and pair.higher_is_better is None:
        style = "bold"
    elif pair is not None and not pair.higher_is_better:
        style = "red" if item.change > 0 else "green"
    change = format_number(item.change, places, sign=True)
    yield "change", Text.assemble((change, style), (f"  {first} → {second}  {one_line(item.id)}", "dim"))
    yield "question", shorten_answer(item.prompt, "bold", MAX_ANSWER_LINES)
    yield "reference", shorten_answer(item.reference, "cyan", MAX_ANSWER_LINES)
    yield f"run {comparison.baseline + 1}", _format_answer(item.first)
    yield f"run {item.run + 1}", _format_answer(item.second)


def _format_answer(item_answer: ItemAnswer) -> Text:
    if item_answer.answer is None:
        return Text("(not kept)", style="dim italic")
    text = shorten_answer(item_answer.answer, "", MAX_ANSWER_LINES)
    return mark_cut(text, item_answer.finish == "length")


def _score_cell(run: RunSummary, key: str, comparison: Comparison) -> Text:
    score = run.scores.get(key)
    if score is None:
        return Text(MISSING, style="dim")
    scores = [other.scores[key] for other in comparison.runs if key in other.scores]
    value = format_number(score.value, decimal_places(other.value for other in scores))
    if score.delta is None:
        return Text(f"({value})", style="dim")
    mark, style = VERDICT_MARKS.get(score.verdict or "", (" ", ""))
    return Text.assemble(value, (f" {_format_delta(score, scores)} {mark}", style))


def _format_delta(score: FinalScore, scores: Sequence[FinalScore]) -> str:
    places = decimal_places((other.delta for other in scores if other.delta is not None), digits=3)
    return format_number(score.delta, places, sign=True)


def _columns_that_fit(columns: dict[str, list[Text]], width: int) -> Iterator[list[str]]:
    """Split the keys of the columns into groups, each as wide as the terminal holds."""
    group: list[str] = []
    group_width = 0
    for key, cells in columns.items():
        column_width = max(len(key.partition("/")[2] or key), *(cell.cell_len for cell in cells)) + 2
        if group and group_width + column_width > width:
            yield group
            group, group_width = [], 0
        group.append(key)
        group_width += column_width
    if group:
        yield group


def _numbered_table(*columns: str, justify: str = "left") -> Table:
    """Build an empty table whose first column holds the number of the run."""
    table = new_table()
    table.add_column("#", style="bold cyan", justify="right", no_wrap=True)
    for column in columns:
        table.add_column(Text(column), justify=justify, overflow="fold")  # type: ignore[arg-type]
    return table
