"""What a run came to, in sentences to be repeated: what got better, what was forgotten, whether the gate held.

Knows verdicts and intervals. Every claim is one that its interval supports; where none does, that is what is said.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Literal

from harness.gate import GateResult
from harness.report.run_report import ScoreChange
from harness.report.stage_suite_matrix import StageSuiteMatrix
from harness.statistics.intervals import Estimate
from harness.utils.formatting import decimal_places, format_number

Outcome = Literal["better", "worse", "mixed", "even", "few", "passed", "failed"]

DOMAIN_CLAUSES = {
    "better": "{} got better",
    "mixed": "{} got better by some scores and worse by others",
    "worse": "{} got worse",
    "even": "no evidence that {} changed",
    "few": "{} has too few items to tell",
}
GENERAL_CLAUSES = {
    "worse": "{} was partly forgotten",
    "mixed": "{} got worse by some scores and better by others",
    "better": "{} got better too",
    "even": "no evidence that {} was forgotten",
    "few": "{} has too few items to tell",
}
PLURAL_FORMS = (("has ", "have "), (" was ", " were "))


@dataclass(frozen=True)
class Statement:
    """One statement under the headline. outcome: what its mark says."""

    outcome: Outcome
    text: str


@dataclass(frozen=True)
class Headline:
    """What stands first in a report."""

    text: str
    statements: tuple[Statement, ...]


def build_run_headline(
    changes: Sequence[ScoreChange], matrices: Sequence[StageSuiteMatrix], gate_results: Sequence[GateResult]
) -> Headline:
    """What a run came to."""
    if not changes:
        return Headline("Nothing was evaluated: the spec has no suite.", tuple(_gate_statement(gate_results)))
    suites = [list(group) for _, group in groupby(changes, key=lambda one: one.suite)]
    clauses = []
    for role, words in (("domain", DOMAIN_CLAUSES), ("general", GENERAL_CLAUSES)):
        of_role = [suite for suite in suites if suite[0].role == role]
        for kind, sentence in words.items():
            found = [suite[0].suite for suite in of_role if _suite_outcome(suite) == kind]
            if found:
                clauses.append(_format_clause(sentence, found, f"{len(of_role)} {role} suites"))
    headline = "; ".join(clauses)
    failed = sum(not one.passed for one in gate_results)
    if failed:
        headline += "; the gate failed"
    lines = [*map(_suite_statement, suites), *_backward_transfer_statement(matrices), *_gate_statement(gate_results)]
    return Headline(headline[:1].upper() + headline[1:] + ".", tuple(lines))


def _suite_outcome(changes: Sequence[ScoreChange]) -> Outcome:
    verdicts = {one.verdict for one in changes}
    if {"better", "worse"} <= verdicts:
        return "mixed"
    for kind in ("better", "worse"):
        if kind in verdicts:
            return kind
    return "few" if verdicts == {"too few items"} else "even"


def _format_clause(sentence: str, suites: Sequence[str], total: str) -> str:
    if len(suites) > 3:
        told = f"{len(suites)} of {total}"
    else:
        told = suites[0] if len(suites) == 1 else f"{', '.join(suites[:-1])} and {suites[-1]}"
    if len(suites) > 1:
        for one, many in PLURAL_FORMS:
            sentence = sentence.replace(one, many)
    return sentence.format(told)


def _suite_statement(changes: Sequence[ScoreChange]) -> Statement:
    kind = _suite_outcome(changes)
    parts = []
    for word in ("better", "worse"):
        found = [one for one in changes if one.verdict == word]
        if found:
            others = [one.name for one in found[1:]]
            parts.append(f"{_format_change(found[0])}" + (f"; {word} too: {', '.join(others)}" if others else ""))
    if not parts:
        told = "too few items for a verdict" if kind == "few" else "no evidence of a change"
        parts.append(f"{_format_change(changes[0])}: {told}")
    return Statement(kind, f"{changes[0].suite} (n = {changes[0].n:,}): {'; '.join(parts)}")


def _format_change(change: ScoreChange) -> str:
    places = decimal_places([change.before.value, change.after.value])
    values = f"{format_number(change.before.value, places)} → {format_number(change.after.value, places)}"
    return f"{change.name} {values}, {format_interval(change.difference)}"


def format_interval(estimate: Estimate) -> str:
    """A difference with its 95 % interval, all with their signs and as many decimals."""
    places = decimal_places([estimate.value, estimate.low, estimate.high], digits=3)
    value, low, high = (format_number(one, places, sign=True) for one in (estimate.value, estimate.low, estimate.high))
    return f"{value} [{low}, {high}]" if math.isfinite(estimate.low) or math.isfinite(estimate.high) else value


def _backward_transfer_statement(matrices: Sequence[StageSuiteMatrix]) -> Iterator[Statement]:
    """What later stages did to what earlier ones had taught, by the first score that tells."""
    for matrix in matrices:
        moved = matrix.summaries.get("backward_transfer")
        if moved is None or not math.isfinite(moved.value):
            continue
        if moved.high < 0:
            kind, told = "worse", "later stages cost what earlier ones had taught"
        elif moved.low > 0:
            kind, told = "better", "later stages helped what earlier ones had taught"
        else:
            kind, told = "even", "no evidence that later stages changed what earlier ones had taught"
        yield Statement(kind, f"{told}: backward transfer {format_interval(moved)} in {matrix.called}")  # type: ignore[arg-type]
        return


def _gate_statement(gate_results: Sequence[GateResult]) -> Iterator[Statement]:
    if not gate_results:
        return
    failed = [one for one in gate_results if not one.passed]
    if failed:
        yield Statement(
            "failed", f"gate failed: {len(failed)} of {len(gate_results)} conditions not met, first: {failed[0].text}"
        )
    else:
        count = "its one condition is" if len(gate_results) == 1 else f"all {len(gate_results)} conditions are"
        yield Statement("passed", f"gate passed: {count} met")
