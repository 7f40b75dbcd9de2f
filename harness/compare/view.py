"""How a comparison looks on a terminal, at any width, and as plain text."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from rich import box
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.table import Table
from rich.text import Text

from harness.compare import Compared, Comparison, Final
from harness.compare.pairs_view import items_grid, pairs_notes, pairs_table
from harness.legible import MISSING, decimals, duration, encodable, number, one_line

MARKS = {"better": ("✓", "green"), "worse": ("✗", "red"), "no evidence": ("·", "dim")}
LONGEST = 40


@dataclass(frozen=True)
class View:
    """The whole comparison as one renderable; it measures the console that it is shown on."""

    comparison: Comparison

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield from encodable(Group(*self._parts(options.max_width)), console, options)

    def _parts(self, width: int) -> Iterator[RenderableType]:
        comparison = self.comparison
        yield runs_table(comparison)
        yield Text()
        yield from scores_tables(comparison, width)
        yield Text(
            "after the last stage, and the difference to the base model (✓ better, ✗ worse, · no evidence); "
            "in brackets: the run has not come to its end",
            style="dim",
        )
        if len(comparison.runs) > 1:
            yield Text()
            yield from self._beside(width)
            yield from differences_tables(comparison, width)

    def _beside(self, width: int) -> Iterator[RenderableType]:
        comparison = self.comparison
        if comparison.pairs:
            yield pairs_table(comparison, width)
        yield from pairs_notes(comparison)
        if comparison.pairs or comparison.refused:
            yield Text()
        # Ten items for each of many runs would bury the table; JSON and the page always have them.
        if comparison.items and (len(comparison.runs) == 2 or comparison.asked):
            yield from items_grid(comparison)
            yield Text()


def runs_table(comparison: Comparison) -> Table:
    """One row a run: its number, name and id, how it trained, how it ended and how long it took."""
    table = _table("run", "how it trained", "ended")
    for number_, run in enumerate(comparison.runs, start=1):
        trained = Text(
            f"{run.mode}: {run.mitigations or 'no mitigation'}\nlearning rate {run.learning_rate or MISSING}"
        )
        took = "" if run.seconds is None else duration(run.seconds)
        style = {"finished": "green", "failed": "bold red"}.get(run.status, "yellow")
        table.add_row(
            str(number_),
            Text.assemble((one_line(run.name), "bold"), "\n", (run.run_id, "dim")),
            trained,
            Text.assemble((run.status, style), "\n", (took, "dim")),
        )
    return table


def scores_tables(comparison: Comparison, width: int) -> Iterator[RenderableType]:
    """For each suite one row a run and one column a score; as many columns beside each other as the width holds."""
    suites: dict[str, list[str]] = {}
    for key in dict.fromkeys(key for run in comparison.runs for key in run.scores):
        suites.setdefault(key.partition("/")[0], []).append(key)
    for suite, keys in suites.items():
        columns = {key: [_cell(run, key, comparison) for run in comparison.runs] for key in keys}
        for index, some in enumerate(_beside(columns, width - 4)):
            if not index:
                yield Text(one_line(suite), style="bold")
            table = _table(*(one_line(key.partition("/")[2]) for key in some), justify="right")
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
        key: [Text(MISSING if value is None else one_line(value, LONGEST)) for value in comparison.differences[key]]
        for key in keys
    }
    for some in _beside(columns, width - 4):
        table = _table(*some)
        for row in range(len(comparison.runs)):
            table.add_row(str(row + 1), *(columns[key][row] for key in some))
        yield table


def _cell(run: Compared, key: str, comparison: Comparison) -> Text:
    score = run.scores.get(key)
    if score is None:
        return Text(MISSING, style="dim")
    scores = [one.scores[key] for one in comparison.runs if key in one.scores]
    value = number(score.value, decimals(one.value for one in scores))
    if score.delta is None:
        return Text(f"({value})", style="dim")
    mark, style = MARKS.get(score.verdict or "", (" ", ""))
    return Text.assemble(value, (f" {_delta(score, scores)} {mark}", style))


def _delta(score: Final, scores: list[Final]) -> str:
    places = decimals((one.delta for one in scores if one.delta is not None), digits=3)
    return number(score.delta, places, sign=True)


def _beside(columns: dict[str, list[Text]], width: int) -> Iterator[list[str]]:
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


def _table(*columns: str, justify: str = "left") -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0), show_edge=False)
    table.add_column("#", style="bold cyan", justify="right", no_wrap=True)
    for column in columns:
        table.add_column(Text(column), justify=justify, overflow="fold")  # type: ignore[arg-type]
    return table
