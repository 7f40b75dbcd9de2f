"""Conditions on the scores of a finished run, checked against the bounds of their intervals.

A condition has one of three outcomes: passed, failed, or not enough evidence for either.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

from harness.errors import HarnessError
from harness.types import MIN_ITEMS, ROUNDING
from harness.utils.formatting import format_number, format_size

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
"""The tests of a condition. `gains` and `loses` count in the direction in which the metric is better."""

GateOutcome = Literal["passed", "failed", "not enough evidence"]

LEVEL_TESTS = ("at_least", "at_most")
DIRECTED_TESTS = ("gains_at_least", "loses_at_most")
DEFAULT_TEST = "loses_at_most"
"""The test of a condition on a primary score that names none; its limit is the score's margin."""


@dataclass(frozen=True)
class ScoreForGate:
    """One score of a run, as a gate needs it.

    Attributes:
        after: The score after the last stage, or the summary.
        difference: Last stage − base, paired; None for a summary of the matrix.
        higher_is_better: None if neither direction is better.
        since: The stage that the difference is relative to, if the base was not measured by this score; "" for the
            base.
        margin: The margin of a suite's primary score; None for any other.
        unusable: Why the score is not used: a condition on it has not enough evidence. Empty if it is used.
    """

    after: Estimate
    difference: Estimate | None
    higher_is_better: bool | None
    since: str = ""
    margin: float | None = None
    unusable: str = ""


@dataclass(frozen=True)
class GateResult:
    """A condition and its result.

    Attributes:
        text: The condition in words.
        outcome: `passed` if the whole 95 % interval meets the condition, `failed` if all of it violates the condition,
            else `not enough evidence`; so is every interval over fewer than 30 items. With `judge_by: value` the value
            alone decides.
        found: The measured value.
        bound: The end of its 95 % interval that is nearest to violating the condition. With `judge_by: value` it is
            the value itself.
        limit: The limit in the spec.
        n: Number of items; 0 if the run does not have the summary.
        since: As in `ScoreForGate`; "" for a condition that is not about a difference.
        tier: `blocks`, or `warns` for a condition that does not decide the gate.
        by_value: Whether the value alone decided.
        groups: Number of groups of items; None if all items are independent.
        unusable: Why the score does not count; empty if it does.
    """

    text: str
    outcome: GateOutcome
    found: float
    bound: float
    limit: float
    n: int
    since: str = ""
    tier: Literal["blocks", "warns"] = "blocks"
    by_value: bool = False
    groups: int | None = None
    unusable: str = ""

    @property
    def passed(self) -> bool:
        """Whether the condition holds."""
        return self.outcome == "passed"

    def to_json(self) -> dict[str, Any]:
        """Return the result as plain data, with `passed`."""
        return asdict(self) | {"passed": self.passed}

    def format_line(self) -> str:
        """Return one line for display: outcome, condition, measured value."""
        word = self.outcome if self.passed else self.outcome.upper()
        start = f"{word}{' (warns)' if self.tier == 'warns' else ''}: {self.text}"
        if not self.n:
            return f"{start}: the run does not have this summary"
        if self.unusable:
            return f"{start}: UNUSABLE: {self.unusable}"
        count = f"n = {format_size(self.n, self.groups)}"
        if self.by_value:
            return f"{start}: {format_number(self.found)}, {count}, by the value alone, without its interval"
        if math.isnan(self.bound):
            return f"{start}: {format_number(self.found)}, {count} is too few for an interval"
        line = f"{start}: {format_number(self.found)}, bound {format_number(self.bound)}, {count}"
        if (self.n if self.groups is None else self.groups) < MIN_ITEMS:
            line += f", fewer than {MIN_ITEMS}"
        return f"{line}, since {self.since!r}: the base was not measured by it" if self.since else line


def gate_outcome(results: Sequence[GateResult]) -> GateOutcome:
    """Return the outcome of a gate: `passed` if every blocking condition is, `failed` if one is, else the third."""
    outcomes = {result.outcome for result in results if result.tier == "blocks"}
    if "failed" in outcomes:
        return "failed"
    return "not enough evidence" if "not enough evidence" in outcomes else "passed"


def validate_gate(conditions: Sequence[Mapping[str, Any]], where: Sequence[str]) -> Iterator[HarnessError]:
    """Yield an error for each condition that is not valid in itself.

    Args:
        conditions: The spec's `gate`, with defaults filled in.
        where: The location of each condition in the spec.
    """
    for condition, location in zip(conditions, where, strict=True):
        tests = [name for name in TESTS if condition.get(name) is not None]
        if len(tests) > 1 or (condition["summary"] is not None and not tests):
            what = f"a condition needs exactly one test, this one has {', '.join(tests) or 'none'}"
            yield HarnessError(location, what, f"use one of {', '.join(TESTS)}")
        elif condition["summary"] is not None and tests[0] not in LEVEL_TESTS:
            what = f"{tests[0]!r} tests a difference, but a summary of the matrix already is one"
            yield HarnessError(location, what, f"use one of {', '.join(LEVEL_TESTS)}")
        elif condition["summary"] is None and "/" not in condition["score"]:
            what = f"the score {condition['score']!r} does not name its suite"
            yield HarnessError(location, what, 'write it as "suite/score", e.g. "general/response_nll"')


def evaluate_gate(
    conditions: Sequence[Mapping[str, Any]], scores: Mapping[str, ScoreForGate]
) -> tuple[GateResult, ...]:
    """Evaluate every condition, in order.

    A condition without a finite interval, or with fewer than 30 items, has not enough evidence. One on a summary that
    the run's matrix does not have fails: `forgetting` of one stage, or a relative summary for a base score of 0.

    Args:
        conditions: The spec's `gate`, with defaults filled in.
        scores: `suite/score` -> score, and `summary:score` -> summary.

    Raises:
        HarnessError: A condition names a score that was not measured.
    """
    return tuple(_evaluate_condition(condition, scores) for condition in conditions)


def summary_score_names(metrics: Mapping[str, Mapping[str, Metric]]) -> dict[tuple[str, str], str]:
    """Return (metric, score) -> the name of the score in summaries over suites.

    It is the score's own name, or `metric.score` if metrics in different suites give different scores of one name.

    Args:
        metrics: Suite -> metric name -> metric.
    """
    keys = {
        (name, score)
        for suite_metrics in metrics.values()
        for name, metric in suite_metrics.items()
        for score in metric.score_names
    }
    counts = Counter(score for _, score in keys)
    return {(name, score): score if counts[score] == 1 else f"{name}.{score}" for name, score in sorted(keys)}


def condition_key(condition: Mapping[str, Any]) -> str:
    """Return the key of the condition's score: `suite/score`, or `summary:score`."""
    score: str = condition["score"]
    return score if condition["summary"] is None else f"{condition['summary']}:{score}"


def _evaluate_condition(condition: Mapping[str, Any], scores: Mapping[str, ScoreForGate]) -> GateResult:
    key = condition_key(condition)
    test = next((name for name in TESTS if condition.get(name) is not None), DEFAULT_TEST)
    if condition.get(test) is None and key in scores and scores[key].margin is None and not scores[key].unusable:
        raise HarnessError("gate", f"{key!r} is not a primary score and has no margin", f'add "{DEFAULT_TEST}": 0.05')
    margin = scores[key].margin if key in scores else None
    limit = float(margin or math.nan) if condition.get(test) is None else float(condition[test])
    if key not in scores:
        if condition["summary"] is not None and _is_known_score(condition["score"], scores):
            text = _describe_condition(condition, test, limit)
            return GateResult(text, "failed", math.nan, math.nan, limit, 0, tier=condition["tier"])
        raise HarnessError("gate", f"the run has no score {key!r}", f"it has: {', '.join(scores) or 'none'}")
    score = scores[key]
    estimate = score.after if test in LEVEL_TESTS else score.difference
    if estimate is None:
        raise HarnessError("gate", f"{key!r} has no difference", f"use one of {', '.join(LEVEL_TESTS)}")
    if test in DIRECTED_TESTS and score.higher_is_better is None:
        hint = "use rises_at_most, rises_at_least, falls_at_most or falls_at_least"
        raise HarnessError("gate", f"neither direction of {key!r} is better", hint)
    # Each test is a lower limit on the estimate or an upper limit. A change of sign turns one into the other.
    negated = test in DIRECTED_TESTS and not score.higher_is_better
    lower_limits = {"rises_at_least": limit, "gains_at_least": limit, "at_least": limit}
    lower_limits |= {"falls_at_most": -limit, "loses_at_most": -limit}
    upper_limits = {"rises_at_most": limit, "at_most": limit, "falls_at_least": -limit}
    by_value = condition["judge_by"] == "value"
    # An upper limit is a lower limit on the negative.
    is_lower = test in lower_limits and not negated
    sign = 1 if is_lower else -1
    least = lower_limits[test] if test in lower_limits else -upper_limits[test]
    worst, best = (estimate.low, estimate.high) if is_lower else (estimate.high, estimate.low)
    outcome: GateOutcome
    if score.unusable:
        outcome = "not enough evidence"
    elif by_value:
        outcome = "passed" if _reaches(sign * estimate.value, least) else "failed"
    elif estimate.units < MIN_ITEMS or math.isnan(worst) or math.isnan(best):
        outcome = "not enough evidence"
    elif _reaches(sign * worst, least):
        outcome = "passed"
    else:
        outcome = "not enough evidence" if _reaches(sign * best, least) else "failed"
    return GateResult(
        _describe_condition(condition, test, limit),
        outcome,
        estimate.value,
        estimate.value if by_value else worst,
        limit,
        estimate.n,
        "" if test in LEVEL_TESTS else score.since,
        condition["tier"],
        by_value,
        estimate.groups,
        score.unusable,
    )


def _reaches(bound: float, least: float) -> bool:
    """Return whether bound >= least, up to rounding: the last digits differ between machines."""
    return bound >= least - ROUNDING * max(abs(least), abs(bound)) if math.isfinite(bound) else bound >= least


def _is_known_score(score: str, scores: Mapping[str, ScoreForGate]) -> bool:
    """Return whether the run has the score of a summary, by its name or by `metric.score`."""
    names = {key.partition("/")[2] for key in scores if "/" in key}
    return any(score == name or score.endswith(f".{name}") for name in names)


def _describe_condition(condition: Mapping[str, Any], test: str, limit: float) -> str:
    subject = condition["score"] if condition["summary"] is None else f"{condition['summary']} of {condition['score']}"
    return f"{subject} must {TESTS[test]} {limit:g}"
