"""A comparison as one page: the runs in the page's own words, the baseline first."""

from __future__ import annotations

from itertools import groupby
from pathlib import Path

from harness.comparison.changed_items import ChangedItem
from harness.comparison.compare import Comparison
from harness.comparison.paired_scores import PairedScore
from harness.comparison.run_summary import RunSummary
from harness.report.html import comparison_page
from harness.report.html import write as write_module
from harness.statistics.intervals import Estimate
from harness.utils.formatting import format_duration
from harness.utils.formatting import format_number as shown


def write_comparison_html(comparison: Comparison, file: Path) -> Path:
    """Write the page; returns its path. Raises HarnessError when it cannot be written."""
    order = [comparison.baseline, *(n for n in range(len(comparison.runs)) if n != comparison.baseline)]
    notes = [*comparison.notes]
    for run, what, why in comparison.not_compared():
        notes.append(f"{comparison.runs[run].name}{f', {what}' if what else ''}: not compared: {why}")
    page = comparison_page.ComparisonPage(
        title=" · ".join(comparison.runs[number].name for number in order),
        columns=tuple(_run_column(comparison.runs[number]) for number in order),
        rows=tuple(
            _score_row(list(pairs), order)
            for _, pairs in groupby(comparison.pairs_by_score(), key=lambda one: (one.suite, one.score))
        ),
        differences={key: tuple(values[n] for n in order) for key, values in comparison.differences.items()},
        items=tuple(
            comparison_page.ItemRow(
                one.suite,
                one.id,
                one.prompt,
                one.reference,
                tuple(_answer_of_run(one, number, comparison.baseline) for number in order),
                tuple(_format_item_score(one, number, comparison.baseline) for number in order),
            )
            for one in comparison.items
        ),
        notes=tuple(notes),
    )
    return write_module.write_comparison_page(page, file)


def _answer_of_run(item: ChangedItem, run_index: int, baseline: int) -> str | None:
    return item.first.answer if run_index == baseline else item.second.answer if run_index == item.run else None


def _format_item_score(item: ChangedItem, run_index: int, baseline: int) -> str:
    found = item.first if run_index == baseline else item.second if run_index == item.run else None
    return "" if found is None else f"{item.score} {shown(found.value)}"


def _run_column(run: RunSummary) -> comparison_page.RunColumn:
    took = "" if run.seconds is None else format_duration(run.seconds)
    facts = {
        "mode": run.mode,
        "mitigations": run.mitigations or "none",
        "learning rate": run.learning_rate,
        "ended": run.status,
        "took": took,
    }
    return comparison_page.RunColumn(run.name, {key: value for key, value in facts.items() if value})


def _score_row(pairs: list[PairedScore], order: list[int]) -> comparison_page.ScoreRow:
    by_run = {one.run: one for one in pairs}
    first = pairs[0]
    values: list[Estimate | None] = [first.first]
    values += [by_run[number].second if number in by_run else None for number in order[1:]]
    found = [None, *(by_run.get(number) for number in order[1:])]
    return comparison_page.ScoreRow(
        suite=first.suite,
        score=first.score,
        higher_is_better=first.higher_is_better,
        n=first.n,
        values=tuple(values),
        differences=tuple(None if one is None else one.difference for one in found),
        p=tuple(None if one is None else one.p_holm for one in found),
        verdicts=tuple(None if one is None else one.verdict for one in found),
        test=first.test,
        needed=tuple(None if one is None else one.needed for one in found),
    )
