"""The headline of a run's page: what improved, what was forgotten, and whether the gate passed.

Every claim is supported by its interval; where no claim is supported, the headline says so.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Literal

from harness.gate import GateResult, gate_outcome
from harness.report.display_text import format_interval
from harness.report.score_change import ScoreChange
from harness.report.stage_suite_matrix import StageSuiteMatrix
from harness.statistics.intervals import Estimate
from harness.utils.formatting import decimal_places, format_number

Outcome = Literal["better", "worse", "mixed", "even", "few", "passed", "failed"]

DOMAIN_CLAUSES = {
    "better": "{} improved",
    "mixed": "{} improved by some scores and got worse by others",
    "worse": "{} got worse",
    "even": "no evidence that {} changed",
    "few": "{} has too few items for a verdict",
}
GENERAL_CLAUSES = {
    "worse": "{} was partly forgotten",
    "mixed": "{} got worse by some scores and improved by others",
    "better": "{} improved too",
    "even": "no evidence that {} was forgotten",
    "few": "{} has too few items for a verdict",
}
GATE_CLAUSES = {"failed": "failed", "not enough evidence": "lacks evidence"}
PLURAL_FORMS = (("has ", "have "), (" was ", " were "))
MAX_NAMED_SUITES = 3


@dataclass(frozen=True)
class Statement:
    """One line below the headline.

    Attributes:
        outcome: Selects the mark in front of the line.
        text: The line.
    """

    outcome: Outcome
    text: str


@dataclass(frozen=True)
class Headline:
    """The first sentence of a page, and the statements below it."""

    text: str
    statements: tuple[Statement, ...]


def build_run_headline(
    changes: Sequence[ScoreChange], matrices: Sequence[StageSuiteMatrix], gate_results: Sequence[GateResult]
) -> Headline:
    """Summarize a run: one clause for each outcome of its suites, one statement for each suite and for the gate."""
    if not changes:
        return Headline("Nothing was evaluated: the spec has no suite.", tuple(_gate_statement(gate_results)))
    suites = [list(group) for _, group in groupby(changes, key=lambda change: change.suite)]
    clauses = []
    for role, templates in (("domain", DOMAIN_CLAUSES), ("general", GENERAL_CLAUSES)):
        suites_of_role = [suite for suite in suites if suite[0].role == role]
        for outcome, template in templates.items():
            names = [suite[0].suite for suite in suites_of_role if _suite_outcome(suite) == outcome]
            if names:
                clauses.append(_format_clause(template, names, f"{len(suites_of_role)} {role} suites"))
    text = "; ".join(clauses)
    outcome = gate_outcome(gate_results)
    if outcome != "passed":
        text += f"; the gate {GATE_CLAUSES[outcome]}"
    statements = [
        *map(_suite_statement, suites),
        *_backward_transfer_statement(matrices),
        *_gate_statement(gate_results),
    ]
    return Headline(text[:1].upper() + text[1:] + ".", tuple(statements))


def _suite_outcome(changes: Sequence[ScoreChange]) -> Outcome:
    verdicts = {change.verdict for change in changes}
    if {"better", "worse"} <= verdicts:
        return "mixed"
    if "better" in verdicts:
        return "better"
    if "worse" in verdicts:
        return "worse"
    return "few" if verdicts == {"too few items"} else "even"


def _format_clause(template: str, suites: Sequence[str], total: str) -> str:
    if len(suites) > MAX_NAMED_SUITES:
        subject = f"{len(suites)} of {total}"
    else:
        subject = suites[0] if len(suites) == 1 else f"{', '.join(suites[:-1])} and {suites[-1]}"
    if len(suites) > 1:
        for singular, plural in PLURAL_FORMS:
            template = template.replace(singular, plural)
    return template.format(subject)


def _suite_statement(changes: Sequence[ScoreChange]) -> Statement:
    outcome = _suite_outcome(changes)
    parts = []
    for verdict in ("better", "worse"):
        agreeing = [change for change in changes if change.verdict == verdict]
        if agreeing:
            others = ", ".join(change.name for change in agreeing[1:])
            parts.append(_format_change(agreeing[0]) + (f"; {verdict} too: {others}" if others else ""))
    if not parts:
        verdict_text = "too few items for a verdict" if outcome == "few" else "no evidence of a change"
        parts.append(f"{_format_change(changes[0])}: {verdict_text}")
    return Statement(outcome, f"{changes[0].suite} (n = {changes[0].n:,}): {'; '.join(parts)}")


def _format_change(change: ScoreChange) -> str:
    places = decimal_places([change.before.value, change.after.value])
    values = f"{format_number(change.before.value, places)} → {format_number(change.after.value, places)}"
    return f"{change.name} {values}, {_format_difference(change.difference)}"


def _format_difference(estimate: Estimate) -> str:
    """Format a difference with its 95 % interval, if it has one."""
    value, bounds = format_interval(estimate)
    return f"{value} {bounds}" if math.isfinite(estimate.low) or math.isfinite(estimate.high) else value


def _backward_transfer_statement(matrices: Sequence[StageSuiteMatrix]) -> Iterator[Statement]:
    """Yield the effect of later stages on earlier tasks, for the first score that has a backward transfer."""
    for matrix in matrices:
        transfer = matrix.summaries.get("backward_transfer")
        if transfer is None or not math.isfinite(transfer.value):
            continue
        outcome: Outcome = "even"
        effect = "no evidence that later stages changed what earlier stages taught"
        if transfer.high < 0:
            outcome, effect = "worse", "later stages degraded what earlier stages taught"
        elif transfer.low > 0:
            outcome, effect = "better", "later stages improved what earlier stages taught"
        yield Statement(outcome, f"{effect}: backward transfer {_format_difference(transfer)} in {matrix.called}")
        return


def _gate_statement(gate_results: Sequence[GateResult]) -> Iterator[Statement]:
    if not gate_results:
        return
    outcome, blocking = gate_outcome(gate_results), [result for result in gate_results if result.tier == "blocks"]
    unmet = [result for result in blocking if not result.passed]
    if unmet:
        first = next(result for result in unmet if result.outcome == outcome)
        count = f"{len(unmet)} of {len(blocking)} conditions not met"
        yield Statement("failed", f"gate {GATE_CLAUSES[outcome]}: {count}, first: {first.text}")
    elif blocking:
        count = "the only condition is" if len(blocking) == 1 else f"all {len(blocking)} conditions are"
        yield Statement("passed", f"gate passed: {count} met")
