"""A comparison as one page: the runs in the page's own words, the baseline first."""

from __future__ import annotations

from itertools import groupby
from pathlib import Path

from harness.comparison.changed_items import Changed
from harness.comparison.compare import Comparison
from harness.comparison.paired_scores import Pair
from harness.comparison.run_summary import Compared
from harness.report.html import comparison_page
from harness.report.html import write as write_module
from harness.statistics.intervals import Estimate
from harness.utils.formatting import duration
from harness.utils.formatting import number as shown


def write(comparison: Comparison, file: Path) -> Path:
    """Write the page; returns its path. Raises HarnessError when it cannot be written."""
    order = [comparison.baseline, *(n for n in range(len(comparison.runs)) if n != comparison.baseline)]
    notes = [*comparison.notes]
    for run, what, why in comparison.left_out():
        notes.append(f"{comparison.runs[run].name}{f', {what}' if what else ''}: not compared: {why}")
    page = comparison_page.Comparison(
        title=" · ".join(comparison.runs[number].name for number in order),
        sides=tuple(_side(comparison.runs[number]) for number in order),
        rows=tuple(
            _row(list(pairs), order)
            for _, pairs in groupby(comparison.pairs_by_score(), key=lambda one: (one.suite, one.score))
        ),
        differences={key: tuple(values[n] for n in order) for key, values in comparison.differences.items()},
        items=tuple(
            comparison_page.Answered(
                one.suite,
                one.id,
                one.prompt,
                one.reference,
                tuple(_answer(one, number, comparison.baseline) for number in order),
                tuple(_score(one, number, comparison.baseline) for number in order),
            )
            for one in comparison.items
        ),
        notes=tuple(notes),
    )
    return write_module.write_comparison(page, file)


def _answer(one: Changed, number: int, baseline: int) -> str | None:
    return one.first.answer if number == baseline else one.second.answer if number == one.run else None


def _score(one: Changed, number: int, baseline: int) -> str:
    found = one.first if number == baseline else one.second if number == one.run else None
    return "" if found is None else f"{one.score} {shown(found.value)}"


def _side(run: Compared) -> comparison_page.Side:
    took = "" if run.seconds is None else duration(run.seconds)
    facts = {
        "mode": run.mode,
        "mitigations": run.mitigations or "none",
        "learning rate": run.learning_rate,
        "ended": run.status,
        "took": took,
    }
    return comparison_page.Side(run.name, {key: value for key, value in facts.items() if value})


def _row(pairs: list[Pair], order: list[int]) -> comparison_page.Row:
    by_run = {one.run: one for one in pairs}
    first = pairs[0]
    values: list[Estimate | None] = [first.first]
    values += [by_run[number].second if number in by_run else None for number in order[1:]]
    found = [None, *(by_run.get(number) for number in order[1:])]
    return comparison_page.Row(
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
