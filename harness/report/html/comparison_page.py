"""The page of a comparison of runs, built from plain values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import groupby

from harness.interfaces.report_section import ReportSection
from harness.report.html import page
from harness.report.score_change import Verdict
from harness.statistics.intervals import Estimate
from harness.utils.redaction import redact, redact_text


@dataclass(frozen=True)
class RunColumn:
    """One run.

    Attributes:
        name: Its name.
        details: Label -> text for the table of runs, such as mode, mitigations and status.
    """

    name: str
    details: Mapping[str, str]


@dataclass(frozen=True)
class ScoreRow:
    """One score of all runs. Tuples have one entry per run, in the order of the runs; None where a run has no value.

    Attributes:
        n: Number of items.
        values: The scores.
        differences: Run − first run over the same items; None for the first run.
        p: P-values, corrected for all comparisons.
        verdicts: The verdicts.
        test: Name of the significance test.
        needed: Items needed for a verdict.
        groups: Number of groups of items; None if all items are independent.
    """

    suite: str
    score: str
    higher_is_better: bool | None
    n: int
    values: tuple[Estimate | None, ...]
    differences: tuple[Estimate | None, ...]
    p: tuple[float | None, ...]
    verdicts: tuple[Verdict | None, ...]
    test: str = ""
    needed: tuple[int | None, ...] = ()
    groups: int | None = None


@dataclass(frozen=True)
class ItemRow:
    """One item with the answer of each run.

    Attributes:
        answers: One per run; None where a run has none.
        scores: The score of each answer as text, such as `rougeL 0.31`.
        cut: Whether each answer was cut at `max_new_tokens`.
    """

    suite: str
    id: str
    prompt: str
    reference: str
    answers: tuple[str | None, ...]
    scores: tuple[str, ...] = ()
    cut: tuple[bool, ...] = ()


@dataclass(frozen=True)
class ComparisonPage:
    """The contents of the page.

    Attributes:
        title: Title of the page.
        columns: The runs, the baseline first.
        rows: The scores.
        differences: Spec key -> its value in each run, None where a run does not have it.
        items: The items to show.
        notes: What a reader must know, such as items that not all runs have.
        headline: The headline; empty: `build_comparison_headline`.
        ratings: What people rated.
    """

    title: str
    columns: tuple[RunColumn, ...]
    rows: tuple[ScoreRow, ...]
    differences: Mapping[str, tuple[str | None, ...]]
    items: tuple[ItemRow, ...] = ()
    notes: tuple[str, ...] = ()
    headline: str = ""
    ratings: tuple[ReportSection, ...] = ()


def build_comparison_page(comparison: ComparisonPage) -> str:
    """Build the page; it has no plots."""
    return page.render_template(
        "comparison.html.jinja",
        comparison=comparison,
        items=comparison.items,
        headline=comparison.headline or build_comparison_headline(comparison),
        detail_names=list(dict.fromkeys(name for column in comparison.columns for name in column.details)),
        suites=[(name, list(group)) for name, group in groupby(comparison.rows, key=lambda row: row.suite)],
        differences=_redact_differences(comparison.differences),
        notes=[redact_text(note) for note in comparison.notes],
    )


def build_comparison_headline(comparison: ComparisonPage) -> str:
    """Summarize the verdicts of each run against the first one; claims nothing beyond the verdicts."""
    if len(comparison.columns) < 2:
        return "There is one run, so nothing is compared."
    first, *others = comparison.columns
    clauses = []
    for index, column in enumerate(others, start=1):
        verdicts = [row.verdicts[index] for row in comparison.rows if row.verdicts[index] is not None]
        counts = [f"{word} in {verdicts.count(word)}" for word in ("better", "worse") if word in verdicts]
        if counts:
            clauses.append(f"{column.name} is {' and '.join(counts)} of {len(verdicts)} scores")
        elif verdicts:
            clauses.append(f"no evidence that {column.name} differs")
        else:
            clauses.append(f"{column.name} was not compared")
    return f"Against {first.name}: {'; '.join(clauses)}."


def _redact_differences(differences: Mapping[str, tuple[str | None, ...]]) -> dict[str, list[str | None]]:
    """Remove secrets from the values; a key with a secret's name is still listed as different."""
    return {
        key: [None if value is None else redact(value, key) for value in values] for key, values in differences.items()
    }
