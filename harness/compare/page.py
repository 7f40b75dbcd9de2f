"""A comparison as one page: the runs in the page's own words, the baseline first."""

from __future__ import annotations

from itertools import groupby
from pathlib import Path

from harness.compare import Changed, Compared, Comparison
from harness.compare.pairs import Pair
from harness.intervals import Estimate
from harness.legible import duration
from harness.legible import number as shown
from harness.report import html


def write(comparison: Comparison, file: Path) -> Path:
    """Write the page; returns its path. Raises HarnessError when it cannot be written."""
    order = [comparison.baseline, *(n for n in range(len(comparison.runs)) if n != comparison.baseline)]
    notes = [*comparison.notes]
    for run, what, why in comparison.left_out():
        notes.append(f"{comparison.runs[run].name}{f', {what}' if what else ''}: not compared: {why}")
    page = html.Comparison(
        title=" · ".join(comparison.runs[number].name for number in order),
        sides=tuple(_side(comparison.runs[number]) for number in order),
        rows=tuple(
            _row(list(pairs), order)
            for _, pairs in groupby(comparison.pairs_by_score(), key=lambda one: (one.suite, one.score))
        ),
        differences={key: tuple(values[n] for n in order) for key, values in comparison.differences.items()},
        items=tuple(
            html.Answered(
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
    return html.write_comparison(page, file)


def _answer(one: Changed, number: int, baseline: int) -> str | None:
    return one.first.answer if number == baseline else one.second.answer if number == one.run else None


def _score(one: Changed, number: int, baseline: int) -> str:
    found = one.first if number == baseline else one.second if number == one.run else None
    return "" if found is None else f"{one.score} {shown(found.value)}"


def _side(run: Compared) -> html.Side:
    took = "" if run.seconds is None else duration(run.seconds)
    facts = {
        "mode": run.mode,
        "mitigations": run.mitigations or "none",
        "learning rate": run.learning_rate,
        "ended": run.status,
        "took": took,
    }
    return html.Side(run.name, {key: value for key, value in facts.items() if value})


def _row(pairs: list[Pair], order: list[int]) -> html.Row:
    by_run = {one.run: one for one in pairs}
    first = pairs[0]
    values: list[Estimate | None] = [first.first]
    values += [by_run[number].second if number in by_run else None for number in order[1:]]
    found = [None, *(by_run.get(number) for number in order[1:])]
    return html.Row(
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
