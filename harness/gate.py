"""Conditions that a run must meet, judged by the bounds of its intervals: for people who ship models.

Knows the scores of a finished run and the spec's `gate`. Knows neither models nor how the scores came to be.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from harness.errors import HarnessError
from harness.types import ROUNDING
from harness.utils.formatting import format_number

if TYPE_CHECKING:
    from harness.interfaces.metric import Metric
    from harness.statistics.intervals import Estimate

TESTS = {
    "rises_at_most": "rise by at most",
    "rises_at_least": "rise by at least",
    "falls_at_most": "fall by at most",
    "falls_at_least": "fall by at least",
    "gains_at_least": "gain at least",
    "loses_at_most": "lose at most",
    "at_least": "be at least",
    "at_most": "be at most",
}
"""What a condition can ask for. `gains` and `loses` count in the direction in which the metric is better."""

LEVEL_TESTS = ("at_least", "at_most")
DIRECTED_TESTS = ("gains_at_least", "loses_at_most")


@dataclass(frozen=True)
class ScoreForGate:
    """One score of a run as a gate sees it. difference: last stage − base, paired; None for a summary of the matrix.

    higher_is_better: None where neither direction is. since: the stage that the difference is to, where the base was
    not measured by this score; "": the base.
    """

    after: Estimate
    difference: Estimate | None
    higher_is_better: bool | None
    since: str = ""


@dataclass(frozen=True)
class GateResult:
    """A condition and what became of it.

    text: the condition in words. found: the value that was judged. bound: the end of its 95 % interval that is the
    nearest to breaking the condition (the value itself, when the spec judges by it). since: see `ScoreForGate`; "" too
    where the condition is not about a difference.
    """

    text: str
    passed: bool
    found: float
    bound: float
    limit: float
    n: int
    since: str = ""

    def format_line(self) -> str:
        """One line for people: the verdict, the condition, what was found."""
        word = "passed" if self.passed else "FAILED"
        if not self.n:
            return f"{word}: {self.text}: the run has no such number"
        if math.isnan(self.bound):
            return f"{word}: {self.text}: {format_number(self.found)}, and n = {self.n} gives no interval to judge by"
        told = f"{word}: {self.text}: {format_number(self.found)}, bound {format_number(self.bound)}, n = {self.n:,}"
        return f"{told}, since {self.since!r}: the base was not measured by it" if self.since else told


def validate_gate(conditions: Sequence[Mapping[str, Any]], where: Sequence[str]) -> Iterator[HarnessError]:
    """What is wrong with the conditions themselves. where: the place of each in the spec."""
    for condition, place in zip(conditions, where, strict=True):
        given = [name for name in TESTS if condition.get(name) is not None]
        if len(given) != 1:
            what = f"a condition names one test, and this names {', '.join(given) if given else 'none'}"
            yield HarnessError(place, what, f"give one of {', '.join(TESTS)}")
        elif condition["summary"] is not None and given[0] not in LEVEL_TESTS:
            what = f"{given[0]!r} is about a difference, and a summary of the matrix is one already"
            yield HarnessError(place, what, f"give one of {', '.join(LEVEL_TESTS)}")
        elif condition["summary"] is None and "/" not in condition["score"]:
            what = f"the score {condition['score']!r} does not say of which suite"
            yield HarnessError(place, what, 'write it as "suite/score", e.g. "general/response_nll"')


def evaluate_gate(
    conditions: Sequence[Mapping[str, Any]], scores: Mapping[str, ScoreForGate]
) -> tuple[GateResult, ...]:
    """Every condition judged, in order.

    conditions: the spec's `gate`, filled in. scores: `suite/score` -> score, and `summary:score` -> summary.
    A condition whose interval is no number fails, and so does one on a summary that the run's matrix does not come to
    (`forgetting` of one stage, a relative one of a base that scores 0). Raises HarnessError that names a score that was
    not measured.
    """
    return tuple(_evaluate_condition(condition, scores) for condition in conditions)


def summary_score_names(metrics: Mapping[str, Mapping[str, Metric]]) -> dict[tuple[str, str], str]:
    """(metric, score) -> what summaries over suites call the score: its name, or `metric.score` where two metrics, in
    suites of their own, give scores of one name, which mean two things.

    metrics: suite -> name of a metric -> the metric.
    """
    keys = {(name, score) for made in metrics.values() for name, one in made.items() for score in one.score_names}
    shared = Counter(score for _, score in keys)
    return {(name, score): score if shared[score] == 1 else f"{name}.{score}" for name, score in sorted(keys)}


def condition_key(condition: Mapping[str, Any]) -> str:
    """What a condition is about, as `scores` calls it."""
    score: str = condition["score"]
    return score if condition["summary"] is None else f"{condition['summary']}:{score}"


def _evaluate_condition(condition: Mapping[str, Any], scores: Mapping[str, ScoreForGate]) -> GateResult:
    key = condition_key(condition)
    (test,) = (name for name in TESTS if condition.get(name) is not None)
    limit = float(condition[test])
    if key not in scores:
        if condition["summary"] is not None and _is_known_score(condition["score"], scores):
            return GateResult(_describe_condition(condition, test, limit), False, math.nan, math.nan, limit, 0)
        there = ", ".join(scores) or "none"
        raise HarnessError("gate", f"the run has no score {key!r}", f"it has: {there}")
    score = scores[key]
    estimate = score.after if test in LEVEL_TESTS else score.difference
    if estimate is None:
        raise HarnessError("gate", f"{key!r} has no difference to judge", f"use one of {', '.join(LEVEL_TESTS)}")
    if test in DIRECTED_TESTS and score.higher_is_better is None:
        raise HarnessError("gate", f"neither direction of {key!r} is better", "ask how far it rises or falls")
    # Every test is one of two: `sign * x` must reach `least`.
    turned = test in DIRECTED_TESTS and not score.higher_is_better
    upward = {"rises_at_least": limit, "gains_at_least": limit, "at_least": limit}
    upward |= {"falls_at_most": -limit, "loses_at_most": -limit}
    downward = {"rises_at_most": limit, "at_most": limit, "falls_at_least": -limit}
    by_value = condition["judge_by"] == "value"
    if test in upward and not turned:
        bound = estimate.value if by_value else estimate.low
        passed = _reaches(bound, upward[test])
    else:
        highest = -upward[test] if turned else downward[test]
        bound = estimate.value if by_value else estimate.high
        passed = _reaches(-bound, -highest)
    since = "" if test in LEVEL_TESTS else score.since
    return GateResult(
        _describe_condition(condition, test, limit), bool(passed), estimate.value, bound, limit, estimate.n, since
    )


def _reaches(bound: float, least: float) -> bool:
    """Whether bound >= least, where a difference of the last digits, which differ between machines, decides nothing."""
    return bound >= least - ROUNDING * max(abs(least), abs(bound)) if math.isfinite(bound) else bound >= least


def _is_known_score(score: str, scores: Mapping[str, ScoreForGate]) -> bool:
    """Whether a summary's score is one of the run's, by its name or by `metric.score` (see `called`)."""
    names = {one.partition("/")[2] for one in scores if "/" in one}
    return any(score == name or score.endswith(f".{name}") for name in names)


def _describe_condition(condition: Mapping[str, Any], test: str, limit: float) -> str:
    what = condition["score"] if condition["summary"] is None else f"{condition['summary']} of {condition['score']}"
    return f"{what} is to {TESTS[test]} {limit:g}"
