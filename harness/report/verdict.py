"""The verdict of a run: what was forgotten, what was learned, what was kept, and whether the gate passed.

Forgetting is judged by one joint test of the suites' primary scores, in units of their margins. Every claim is
supported by an interval; where no claim is supported, the verdict says so.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Literal

from harness.gate import GateResult, gate_outcome
from harness.report.display_text import format_interval
from harness.report.domain_leakage import LeakedWord
from harness.report.score_change import ScoreChange
from harness.statistics.intervals import Estimate, mean_over_suites
from harness.types import MIN_ITEMS
from harness.utils.formatting import decimal_places, format_number, format_size

Outcome = Literal["better", "worse", "mixed", "even", "few", "kept", "passed", "failed"]
RetentionOutcome = Literal["kept", "forgot", "not enough items"]

DOMAIN_CLAUSES = {
    "worse": "{} got worse",
    "mixed": "{} improved by some scores and got worse by others",
    "better": "{} improved",
    "even": "no evidence that {} changed",
    "few": "{} has too few items for a verdict",
}
GENERAL_CLAUSES = {
    "forgot": "{} was partly forgotten",
    "kept": "{} was kept",
    "not enough items": "{n:,} items cannot tell whether {} was kept",
}
EARLIER_CLAUSES = {
    "forgot": "later stages partly forgot {}",
    "kept": "later stages kept {}",
    "not enough items": "{n:,} items cannot tell whether later stages kept {}",
}
GATE_CLAUSES = {"failed": "failed", "not enough evidence": "lacks evidence"}
STATEMENT_OUTCOMES: dict[RetentionOutcome, Outcome] = {"kept": "kept", "forgot": "worse", "not enough items": "few"}
MAX_NAMED_SUITES = 3
MIN_LEAKS, MIN_LEAK_SHARE = 3, 0.05
"""A word of the domain is in the headline from so many general answers on, and so large a share of them."""


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
class Retention:
    """Whether a group of suites was kept, by the primary score of each.

    Attributes:
        outcome: `kept` if the lower bound of `change` is above −1. Otherwise `forgot` if its upper bound is below 0.
            Otherwise, and below 30 items, `not enough items`.
        change: Mean over the suites of the primary score's change in its better direction, divided by its margin. −1
            is a loss of one margin.
        suites: The suites.
        worse_suites: Those whose own change is below 0 with its whole interval.
    """

    outcome: RetentionOutcome
    change: Estimate
    suites: tuple[str, ...]
    worse_suites: tuple[str, ...]


@dataclass(frozen=True)
class RunVerdict:
    """The first thing that every report says.

    Attributes:
        headline: One sentence: losses first, then gains, then what was kept.
        retention_statements: One line for each of `general` and `earlier_tasks`.
        suite_statements: One line for each suite.
        gate_statements: One line for the gate, if the spec has one.
        general: Retention of the general suites since the base model; None if no general suite was evaluated.
        earlier_tasks: Retention, since their own stage, of the suites that earlier stages taught; None without any.
    """

    headline: str
    retention_statements: tuple[Statement, ...] = ()
    suite_statements: tuple[Statement, ...] = ()
    gate_statements: tuple[Statement, ...] = ()
    general: Retention | None = None
    earlier_tasks: Retention | None = None

    @property
    def statements(self) -> tuple[Statement, ...]:
        """All statements, in the order of a page."""
        return (*self.retention_statements, *self.suite_statements, *self.gate_statements)


def build_verdict(
    changes: Sequence[ScoreChange],
    gate_results: Sequence[GateResult] = (),
    leaked_words: Sequence[LeakedWord] = (),
) -> RunVerdict:
    """Judge a run by the changes of its scores.

    Args:
        changes: The change of every score. Primary scores have a margin.
        gate_results: The results of the gate's conditions.
        leaked_words: Words of the domain in general answers, the most frequent first.
    """
    if not changes:
        headline = "Nothing was evaluated: the spec has no suite."
        return RunVerdict(headline, gate_statements=tuple(_gate_statement(gate_results)))
    primary = [change for change in changes if change.margin is not None]
    general = judge_retention([(change, change.difference) for change in primary if change.role == "general"])
    earlier = judge_retention(
        [
            (change, change.since_learned)
            for change in primary
            if change.role == "domain" and change.since_learned is not None
        ]
    )
    suites = [list(group) for _, group in groupby(changes, key=lambda change: change.suite)]
    return RunVerdict(
        _headline(suites, general, earlier, gate_results, leaked_words),
        (
            *_retention_statement(general, "general ability", "since the base model"),
            *_retention_statement(earlier, "earlier tasks", "since their own stage"),
        ),
        tuple(map(_suite_statement, suites)),
        tuple(_gate_statement(gate_results)),
        general,
        earlier,
    )


def judge_retention(primary_changes: Sequence[tuple[ScoreChange, Estimate]]) -> Retention | None:
    """Judge whether suites were kept; see `Retention`.

    Args:
        primary_changes: The primary score of each suite, and its difference to judge.

    Returns:
        The joint judgement; None without a suite.
    """
    if not primary_changes:
        return None
    in_margins = [
        difference.scaled((1 if change.higher_is_better else -1) / (change.margin or math.nan))
        for change, difference in primary_changes
    ]
    pooled = mean_over_suites(in_margins)
    outcome: RetentionOutcome = "not enough items"
    if pooled.units >= MIN_ITEMS and pooled.low > -1:
        outcome = "kept"
    elif pooled.units >= MIN_ITEMS and pooled.high < 0:
        outcome = "forgot"
    suites = tuple(change.suite for change, _ in primary_changes)
    worse = tuple(suite for suite, change in zip(suites, in_margins, strict=True) if change.high < 0)
    return Retention(outcome, pooled, suites, worse)


# -- the headline -----------------------------------------------------------------------------------------------------


def _headline(
    suites: Sequence[Sequence[ScoreChange]],
    general: Retention | None,
    earlier: Retention | None,
    gate_results: Sequence[GateResult],
    leaked_words: Sequence[LeakedWord],
) -> str:
    """Join one clause for each outcome: losses, gains, what was kept, what cannot be said."""
    retained = [
        (retention, clauses[retention.outcome])
        for retention, clauses in ((general, GENERAL_CLAUSES), (earlier, EARLIER_CLAUSES))
        if retention is not None
    ]
    losses = [_retention_clause(each, text) for each, text in retained if each.outcome == "forgot"]
    losses += [_worse_alone_clause(each) for each, _ in retained if each.outcome == "not enough items"]
    other = [_retention_clause(each, text) for each, text in retained if each.outcome != "forgot"]
    domain = [suite for suite in suites if suite[0].role == "domain"]
    domain_clauses = []
    for outcome, template in DOMAIN_CLAUSES.items():
        names = [suite[0].suite for suite in domain if _suite_outcome(suite) == outcome]
        if names:
            domain_clauses.append(_domain_clause(template, names, len(domain)))
    clauses = [*filter(None, losses), *_leak_clause(leaked_words), *domain_clauses, *other]
    if general is None:
        measured = any(suite[0].role == "general" for suite in suites)
        clauses.append(f"general ability was not {'judged' if measured else 'measured'}")
    gate = gate_outcome(gate_results)
    if gate != "passed":
        clauses.append(f"the gate {GATE_CLAUSES[gate]}")
    text = "; ".join(clauses)
    return text[:1].upper() + text[1:] + "."


def _retention_clause(retention: Retention, template: str) -> str:
    """Name the suites: of a loss those that fell on their own, if there are any."""
    forgot = retention.outcome == "forgot"
    worse = retention.worse_suites if forgot else ()
    together = forgot or bool(retention.worse_suites)
    names, total = worse or retention.suites, len(retention.suites)
    plural = len(names) > 1
    if len(names) <= MAX_NAMED_SUITES:
        subject = _join(names) + (" together" if together and plural and not worse else "")
    elif worse:
        subject = _name_some(worse, total)
    else:
        subject, plural = f"the mean of {total} suites", False
    return _format_clause(template, subject, retention.change.n, plural=plural)


def _worse_alone_clause(retention: Retention) -> str:
    """Name the suites that fell on their own, where all together do not decide; "" if there are none."""
    worse, total = retention.worse_suites, len(retention.suites)
    return f"{_name_some(worse, total)} got worse" if worse and total > 1 else ""


def _name_some(suites: Sequence[str], total: int) -> str:
    """Return the names of suites, or the number of many."""
    return _join(suites) if len(suites) <= MAX_NAMED_SUITES else f"{len(suites)} of {total} suites"


def _leak_clause(leaked_words: Sequence[LeakedWord]) -> Iterator[str]:
    """Name the most frequent word of the domain in general answers, if it is in a notable share of them."""
    if leaked_words and leaked_words[0].count >= max(MIN_LEAKS, MIN_LEAK_SHARE * leaked_words[0].answers):
        word = leaked_words[0]
        of_answers = f" of {word.answers:,}" if word.answers else ""
        yield f"{word.count:,}{of_answers} general answers now contain {word.word!r}"


def _domain_clause(template: str, names: Sequence[str], total: int) -> str:
    subject = _join(names) if len(names) <= MAX_NAMED_SUITES else f"{len(names)} of {total} domain suites"
    return _format_clause(template, subject, 0, plural=len(names) > 1)


def _format_clause(template: str, subject: str, n: int, *, plural: bool) -> str:
    if plural:
        template = template.replace("{} was ", "{} were ").replace("{} has ", "{} have ")
    return template.format(subject, n=n)


def _join(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _suite_outcome(changes: Sequence[ScoreChange]) -> Outcome:
    verdicts = {change.verdict for change in changes}
    if {"better", "worse"} <= verdicts:
        return "mixed"
    if "better" in verdicts:
        return "better"
    if "worse" in verdicts:
        return "worse"
    return "few" if verdicts == {"too few items"} else "even"


# -- the statements ---------------------------------------------------------------------------------------------------


def _retention_statement(retention: Retention | None, subject: str, since: str) -> Iterator[Statement]:
    if retention is None:
        return
    verdict = {"forgot": "partly forgotten", "kept": "kept"}.get(retention.outcome, "not enough items to tell")
    value, bounds = format_interval(retention.change)
    suites = f"mean of {len(retention.suites)} suites" if len(retention.suites) > 1 else retention.suites[0]
    text = f"{subject}: {verdict}; {suites} {value} margins {bounds} {since} (kept if the interval is above −1)"
    yield Statement(STATEMENT_OUTCOMES[retention.outcome], text)


def _suite_statement(changes: Sequence[ScoreChange]) -> Statement:
    """Describe the primary score, then the other scores that changed."""
    outcome = _suite_outcome(changes)
    first = next((change for change in changes if change.margin is not None), changes[0])
    verdict = {"no evidence": "no evidence of a change", "too few items": "too few items for a verdict"}
    parts = [f"{_format_change(first)}: {verdict.get(first.verdict, first.verdict)}"]
    for name in ("better", "worse"):
        others = ", ".join(change.name for change in changes if change is not first and change.verdict == name)
        if others:
            parts.append(f"{name}{' too' if name == first.verdict else ''}: {others}")
    return Statement(
        outcome, f"{first.suite} (n = {format_size(first.n, first.difference.groups)}): {'; '.join(parts)}"
    )


def _format_change(change: ScoreChange) -> str:
    places = decimal_places([change.before.value, change.after.value])
    values = f"{format_number(change.before.value, places)} → {format_number(change.after.value, places)}"
    return f"{change.name} {values}, {_format_difference(change.difference)}"


def _format_difference(estimate: Estimate) -> str:
    """Format a difference with its 95 % interval, if it has one."""
    value, bounds = format_interval(estimate)
    return f"{value} {bounds}" if math.isfinite(estimate.low) or math.isfinite(estimate.high) else value


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
