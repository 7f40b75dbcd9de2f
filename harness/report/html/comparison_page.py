"""The page of a comparison of runs, whoever made the comparison.

Knows what a page shows of one, as plain values; not where the runs are, nor how they were compared.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import groupby
from typing import Literal

from harness.report.html import page
from harness.report.run_report import Verdict
from harness.statistics.intervals import Estimate
from harness.utils.formatting import format_number
from harness.utils.redaction import redact, redact_text


@dataclass(frozen=True)
class RunColumn:
    """One run. details: what a table says of it, such as its mode, its mitigations, and how it ended."""

    name: str
    details: Mapping[str, str]


@dataclass(frozen=True)
class ScoreRow:
    """One score of all runs. values, differences, p, verdicts: one a run, in their order; None where a run has none.

    differences: run − first run over the same items, so that the first has none. p: adjusted for all comparisons.
    test: how the differences were tested, in words. needed: items that would give a verdict, of the last run.
    """

    suite: str
    score: str
    higher_is_better: bool | None
    n: int
    values: tuple[Estimate | None, ...]
    differences: tuple[Estimate | None, ...]
    p: tuple[float | None, ...]
    verdicts: tuple[Verdict | Literal["different"] | None, ...]
    test: str = ""
    needed: tuple[int | None, ...] = ()


@dataclass(frozen=True)
class ItemRow:
    """One item and what each run answered; scores: of each answer, in words such as `rougeL 0.31`."""

    suite: str
    id: str
    prompt: str
    reference: str
    answers: tuple[str | None, ...]
    scores: tuple[str, ...] = ()


@dataclass(frozen=True)
class ComparisonPage:
    """Runs beside one another. differences: key of the spec -> its value in each run, None where a run has none.

    notes: what a reader must know, such as items that not all runs have. headline: "" to have one made of the rows.
    """

    title: str
    columns: tuple[RunColumn, ...]
    rows: tuple[ScoreRow, ...]
    differences: Mapping[str, tuple[str | None, ...]]
    items: tuple[ItemRow, ...] = ()
    notes: tuple[str, ...] = ()
    headline: str = ""


def build_comparison_page(comparison: ComparisonPage) -> str:
    """The page; it has no plots."""
    return page.render_template(
        "comparison.html.jinja",
        one=comparison,
        headline=comparison.headline or build_comparison_headline(comparison),
        facts=list(dict.fromkeys(key for side in comparison.columns for key in side.details)),
        suites=[(name, list(group)) for name, group in groupby(comparison.rows, key=lambda row: row.suite)],
        differences=_redact_differences(comparison.differences),
        notes=[redact_text(note) for note in comparison.notes],
        number=format_number,
    )


def build_comparison_headline(comparison: ComparisonPage) -> str:
    """What the rows come to, run by run against the first; no claim that a verdict does not make."""
    if len(comparison.columns) < 2:
        return "There is one run, so nothing is compared."
    first, *others = comparison.columns
    clauses = []
    for index, side in enumerate(others, start=1):
        counts = {word: sum(row.verdicts[index] == word for row in comparison.rows) for word in ("better", "worse")}
        of = sum(row.verdicts[index] is not None for row in comparison.rows)
        told = [f"{word} in {count}" for word, count in counts.items() if count]
        if told:
            clauses.append(f"{side.name} is {' and '.join(told)} of {of} scores")
        else:
            clauses.append(f"no evidence that {side.name} differs" if of else f"{side.name} was not compared")
    return f"Against {first.name}: {'; '.join(clauses)}."


def _redact_differences(differences: Mapping[str, tuple[str | None, ...]]) -> dict[str, list[str | None]]:
    """The differences without secrets; what stands under a secret's name is left out, and still seen to differ."""
    return {key: [None if one is None else redact(one, key) for one in values] for key, values in differences.items()}
