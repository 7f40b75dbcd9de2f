"""Conditions on the scores of a finished run, checked against the bounds of their intervals."""

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
"""The tests of a condition. `gains` and `loses` count in the direction in which the metric is better."""

LEVEL_TESTS = ("at_least", "at_most")
DIRECTED_TESTS = ("gains_at_least", "loses_at_most")


@dataclass(frozen=True)
class ScoreForGate:
    """One score of a run, as a gate needs it.

    Attributes:
        after: The score after the last stage, or the summary.
        difference: Last stage − base, paired; None for a summary of the matrix.
        higher_is_better: None if neither direction is better.
        since: The stage that the difference is relative to, if the base was not measured by this score; "" for the
            base.
    """

    after: Estimate
    difference: Estimate | None
    higher_is_better: bool | None
    since: str = ""


@dataclass(frozen=True)
class GateResult:
    """A condition and its result.

    Attributes:
        text: The condition in words.
        passed: Whether the condition holds.
        found: The measured value.
        bound: The end of its 95 % interval that is nearest to violating the condition. With `judge_by: value` it is
            the value itself.
        limit: The limit in the spec.
        n: Number of items; 0 if the run does not have the summary.
        since: As in `ScoreForGate`; "" for a condition that is not about a difference.
    """

    text: str
    passed: bool
    found: float
    bound: float
    limit: float
    n: int
    since: str = ""

    def format_line(self) -> str:
        """Return one line for display: result, condition, measured value."""
        start = f"{'passed' if self.passed else 'FAILED'}: {self.text}"
        if not self.n:
            return f"{start}: the run does not have this summary"
        if math.isnan(self.bound):
            return f"{start}: {format_number(self.found)}, n = {self.n} is too few for an interval"
        line = f"{start}: {format_number(self.found)}, bound {format_number(self.bound)}, n = {self.n:,}"
        return f"{line}, since {self.since!r}: the base was not measured by it" if self.since else line


def validate_gate(conditions: Sequence[Mapping[str, Any]], where: Sequence[str]) -> Iterator[HarnessError]:
    """Yield an error for each condition that is not valid in itself.

    Args:
        conditions: The spec's `gate`, with defaults filled in.
        where: The location of each condition in the spec.
    """
    for condition, location in zip(conditions, where, strict=True):
        tests = [name for name in TESTS if condition.get(name) is not None]
        if len(tests) != 1:
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

    A condition without a finite interval fails. So does one on a summary that the run's matrix does not have:
    `forgetting` of one stage, or a relative summary for a base score of 0.

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
    (test,) = (name for name in TESTS if condition.get(name) is not None)
    limit = float(condition[test])
    if key not in scores:
        if condition["summary"] is not None and _is_known_score(condition["score"], scores):
            return GateResult(_describe_condition(condition, test, limit), False, math.nan, math.nan, limit, 0)
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
    if test in lower_limits and not negated:
        bound = estimate.value if by_value else estimate.low
        passed = _reaches(bound, lower_limits[test])
    else:
        upper_limit = -lower_limits[test] if negated else upper_limits[test]
        bound = estimate.value if by_value else estimate.high
        passed = _reaches(-bound, -upper_limit)
    since = "" if test in LEVEL_TESTS else score.since
    return GateResult(
        _describe_condition(condition, test, limit), bool(passed), estimate.value, bound, limit, estimate.n, since
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
