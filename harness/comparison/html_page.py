"""Write a comparison as an HTML page, the baseline first."""

from __future__ import annotations

from itertools import groupby
from pathlib import Path

from harness.comparison.changed_items import ChangedItem
from harness.comparison.compare import Comparison
from harness.comparison.paired_scores import PairedScore
from harness.comparison.run_summary import RunSummary
from harness.errors import HarnessError
from harness.report.flips import ItemAnswer
from harness.report.html import comparison_page
from harness.report.html.write import write_comparison_page
from harness.statistics.intervals import Estimate
from harness.utils.formatting import format_duration, format_number


def write_comparison_html(comparison: Comparison, file: Path) -> Path:
    """Write the page and return its path.

    Raises:
        HarnessError: If the file cannot be written, or methods are compared over seeds.
    """
    if comparison.methods is not None:
        what = "the page shows runs, and these are compared as methods over their seeds"
        raise HarnessError("--html", what, "use --markdown or --latex, or open the report.html of the experiment")
    order = [comparison.baseline, *(n for n in range(len(comparison.runs)) if n != comparison.baseline)]
    notes = [*comparison.notes]
    for run, what, reason in comparison.not_compared():
        notes.append(f"{comparison.runs[run].name}{f', {what}' if what else ''}: not compared: {reason}")
    page = comparison_page.ComparisonPage(
        title=" · ".join(comparison.runs[run].name for run in order),
        columns=tuple(_run_column(comparison.runs[run]) for run in order),
        rows=tuple(
            _score_row(list(pairs), order)
            for _, pairs in groupby(comparison.pairs_by_score(), key=lambda pair: (pair.suite, pair.score))
        ),
        differences={key: tuple(values[run] for run in order) for key, values in comparison.differences.items()},
        items=tuple(_item_row(item, comparison.baseline, order) for item in comparison.items),
        notes=tuple(notes),
        ratings=comparison.ratings,
    )
    return write_comparison_page(page, file)


def _run_column(run: RunSummary) -> comparison_page.RunColumn:
    details = {
        "mode": run.mode,
        "mitigations": run.mitigations or "none",
        "learning rate": run.learning_rate,
        "ended": run.status,
        "took": "" if run.seconds is None else format_duration(run.seconds),
    }
    return comparison_page.RunColumn(run.name, {key: value for key, value in details.items() if value})


def _score_row(pairs: list[PairedScore], order: list[int]) -> comparison_page.ScoreRow:
    """Build the row of one score. pairs: its pairs; order: the runs, the baseline first."""
    by_run = {pair.run: pair for pair in pairs}
    first = pairs[0]
    columns = [None, *(by_run.get(run) for run in order[1:])]
    values: list[Estimate | None] = [first.first, *(None if pair is None else pair.second for pair in columns[1:])]
    return comparison_page.ScoreRow(
        suite=first.suite,
        score=first.score,
        higher_is_better=first.higher_is_better,
        n=first.n,
        groups=first.difference.groups,
        values=tuple(values),
        differences=tuple(None if pair is None else pair.difference for pair in columns),
        p=tuple(None if pair is None else pair.p_holm for pair in columns),
        verdicts=tuple(None if pair is None else pair.verdict for pair in columns),
        test=first.test,
        needed=tuple(None if pair is None else pair.needed for pair in columns),
    )


def _item_row(item: ChangedItem, baseline: int, order: list[int]) -> comparison_page.ItemRow:
    answers: list[ItemAnswer | None] = [
        item.first if run == baseline else item.second if run == item.run else None for run in order
    ]
    return comparison_page.ItemRow(
        suite=item.suite,
        id=item.id,
        prompt=item.prompt,
        reference=item.reference,
        answers=tuple(None if answer is None else answer.answer for answer in answers),
        scores=tuple("" if answer is None else f"{item.score} {format_number(answer.value)}" for answer in answers),
        cut=tuple(answer is not None and answer.finish == "length" for answer in answers),
    )
