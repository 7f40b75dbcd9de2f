"""What a run came to, in sentences to be repeated: what got better, what was forgotten, whether the gate held.

Knows verdicts and intervals. Every claim is one that its interval supports; where none does, that is what is said.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Literal

from harness.gate import Judged
from harness.report.run_report import Change
from harness.report.stage_suite_matrix import Matrix
from harness.statistics.intervals import Estimate
from harness.utils.formatting import decimals, number

Kind = Literal["better", "worse", "mixed", "even", "few", "passed", "failed"]

DOMAIN = {
    "better": "{} got better",
    "mixed": "{} got better by some scores and worse by others",
    "worse": "{} got worse",
    "even": "no evidence that {} changed",
    "few": "{} has too few items to tell",
}
GENERAL = {
    "worse": "{} was partly forgotten",
    "mixed": "{} got worse by some scores and better by others",
    "better": "{} got better too",
    "even": "no evidence that {} was forgotten",
    "few": "{} has too few items to tell",
}
PLURAL = (("has ", "have "), (" was ", " were "))


@dataclass(frozen=True)
class Line:
    """One statement under the headline. kind: what its mark says."""

    kind: Kind
    text: str


@dataclass(frozen=True)
class Verdict:
    """What stands first in a report."""

    headline: str
    lines: tuple[Line, ...]


def verdict(changes: Sequence[Change], matrices: Sequence[Matrix], gate: Sequence[Judged]) -> Verdict:
    """What a run came to."""
    if not changes:
        return Verdict("Nothing was evaluated: the spec has no suite.", tuple(_gate(gate)))
    suites = [list(group) for _, group in groupby(changes, key=lambda one: one.suite)]
    clauses = []
    for role, words in (("domain", DOMAIN), ("general", GENERAL)):
        of_role = [suite for suite in suites if suite[0].role == role]
        for kind, sentence in words.items():
            found = [suite[0].suite for suite in of_role if _kind(suite) == kind]
            if found:
                clauses.append(_said(sentence, found, f"{len(of_role)} {role} suites"))
    headline = "; ".join(clauses)
    failed = sum(not one.passed for one in gate)
    if failed:
        headline += "; the gate failed"
    lines = [*map(_line, suites), *_stages(matrices), *_gate(gate)]
    return Verdict(headline[:1].upper() + headline[1:] + ".", tuple(lines))


def _kind(suite: Sequence[Change]) -> Kind:
    verdicts = {one.verdict for one in suite}
    if {"better", "worse"} <= verdicts:
        return "mixed"
    for kind in ("better", "worse"):
        if kind in verdicts:
            return kind
    return "few" if verdicts == {"too few items"} else "even"


def _said(sentence: str, names: Sequence[str], of: str) -> str:
    if len(names) > 3:
        told = f"{len(names)} of {of}"
    else:
        told = names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
    if len(names) > 1:
        for one, many in PLURAL:
            sentence = sentence.replace(one, many)
    return sentence.format(told)


def _line(suite: Sequence[Change]) -> Line:
    kind = _kind(suite)
    parts = []
    for word in ("better", "worse"):
        found = [one for one in suite if one.verdict == word]
        if found:
            others = [one.name for one in found[1:]]
            parts.append(f"{_moved(found[0])}" + (f"; {word} too: {', '.join(others)}" if others else ""))
    if not parts:
        told = "too few items for a verdict" if kind == "few" else "no evidence of a change"
        parts.append(f"{_moved(suite[0])}: {told}")
    return Line(kind, f"{suite[0].suite} (n = {suite[0].n:,}): {'; '.join(parts)}")


def _moved(change: Change) -> str:
    places = decimals([change.before.value, change.after.value])
    values = f"{number(change.before.value, places)} → {number(change.after.value, places)}"
    return f"{change.name} {values}, {interval(change.difference)}"


def interval(estimate: Estimate) -> str:
    """A difference with its 95 % interval, all with their signs and as many decimals."""
    places = decimals([estimate.value, estimate.low, estimate.high], digits=3)
    value, low, high = (number(one, places, sign=True) for one in (estimate.value, estimate.low, estimate.high))
    return f"{value} [{low}, {high}]" if math.isfinite(estimate.low) or math.isfinite(estimate.high) else value


def _stages(matrices: Sequence[Matrix]) -> Iterator[Line]:
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
        yield Line(kind, f"{told}: backward transfer {interval(moved)} in {matrix.called}")  # type: ignore[arg-type]
        return


def _gate(gate: Sequence[Judged]) -> Iterator[Line]:
    if not gate:
        return
    failed = [one for one in gate if not one.passed]
    if failed:
        yield Line("failed", f"gate failed: {len(failed)} of {len(gate)} conditions not met, first: {failed[0].text}")
    else:
        count = "its one condition is" if len(gate) == 1 else f"all {len(gate)} conditions are"
        yield Line("passed", f"gate passed: {count} met")
