"""What arms are compared by, known before any of them has run: that each of them will measure it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from harness import gate
from harness.errors import HarnessError, raise_all
from harness.spec.arms import default_axes, is_summary_axis
from harness.spec.matrix_summaries import NEEDS_SEVERAL_STAGES, has_one_stage, is_unavailable, unavailable_reason
from harness.spec.preflight import MetricsBySuite, scores_with_direction
from harness.spec.spec import Spec
from harness.types import Plan, Role


@dataclass(frozen=True)
class PlannedArm:
    """An arm, called `name`, and what it will measure."""

    name: str
    plan: Plan
    metrics: MetricsBySuite


def preflight_arms(spec: Spec, arms: Sequence[PlannedArm]) -> None:
    """Raise HarnessError unless every arm will measure what the arms are compared by, `arms.gain` and `.forgetting`.

    arms: the arms that are to run. Where the spec names no score, it is the first of the baseline's that will do.
    """
    given = spec.document["arms"]
    base = next((one for one in arms if one.name == given["baseline"]), arms[0])
    scores = {role: _directed_suite_scores(base, role) for role in ("domain", "general")}
    chosen = default_axes(scores, given["gain"], given["forgetting"])
    if chosen is None:
        what = "gain and forgetting need a suite of each role, domain and general, whose score is better one way"
        hint = "add one to evaluate, or name the scores in arms.gain and arms.forgetting"
        raise HarnessError(spec.where(("arms",)), what, hint)
    named = zip(("gain", "forgetting"), chosen, strict=True)
    raise_all(error for key, axis in named for error in _axis_errors(spec, key, axis, arms))


def axis_warnings(arms: Sequence[PlannedArm]) -> Iterator[str]:
    """What a person should know of arms that are to be compared: held-out rows that are not the same ones."""
    drawn = {suite.source for one in arms for suite in one.plan.suites if one.plan.sources[suite.source][1]["held_out"]}
    if drawn and len({one.plan.seed for one in arms}) > 1:
        yield (
            f"the arms have other seeds and so other held-out rows of {', '.join(map(repr, sorted(drawn)))}: they are "
            "compared over those that they share; give the suites sources of their own to share all"
        )


def _directed_suite_scores(arm: PlannedArm, role: Role | None = None) -> list[str]:
    """The scores, as `suite/score`, that are better one way; role: of such suites alone."""
    return [
        f"{suite.name}/{name}"
        for suite in arm.plan.suites
        if role in (None, suite.role)
        for metric in arm.metrics[suite.name].values()
        for name in metric.score_names
        if metric.higher_is_better is not None
    ]


def _axis_errors(spec: Spec, key: str, axis: str, arms: Sequence[PlannedArm]) -> Iterator[HarnessError]:
    """What is wrong with one axis: no arm measures it, or not every one, or not all alike."""
    score = axis.partition(":")[2] if is_summary_axis(axis) else axis
    known = {
        one.name: scores_with_direction(one.metrics) if is_summary_axis(axis) else _directed_suite_scores(one)
        for one in arms
    }
    without = [name for name, scores in known.items() if score not in scores]
    where = spec.where(("arms", key))
    if len(without) == len(arms):
        there = ", ".join(dict.fromkeys(score for scores in known.values() for score in scores)) or "none"
        yield HarnessError(where, f"no arm gives a score {score!r} that is better one way", f"there are: {there}")
        return
    if without:
        what = f"the arms are compared by {axis!r}, which {_quote_names(without)} will not measure"
        yield HarnessError(where, what, f"measure it in every arm, or name another in arms.{key}")
    having = [one for one in arms if one.name not in without]
    if is_summary_axis(axis):
        needed = [one for one in having if one.name != spec.document["arms"]["joint"]]
        yield from _unavailable_axis_errors(where, axis, needed)
    otherwise = [
        one.name for one in having[1:] if _is_measured_differently(having[0], one, score, summary=is_summary_axis(axis))
    ]
    if otherwise:
        hint = f"give its metric the same options in every arm, or name another in arms.{key}"
        what = f"{_quote_names(otherwise)} will measure it otherwise than {having[0].name!r}"
        yield HarnessError(where, f"the arms are compared by {axis!r}, and {what}", hint)


def _unavailable_axis_errors(where: str, axis: str, arms: Sequence[PlannedArm]) -> Iterator[HarnessError]:
    """What is wrong with an axis that is a summary, which the matrix of some arm will not come to."""
    summary, _, score = axis.partition(":")
    lone = [one.name for one in arms if summary in NEEDS_SEVERAL_STAGES and has_one_stage(one.plan)]
    if lone:
        what = f"{axis!r} is about several stages, and {_quote_names(lone)} has one"
        yield HarnessError(where, what, "name a score of a general suite, or give the arms stages (mode continual)")
    lacking = [
        one.name for one in arms if is_unavailable(one.plan, one.metrics, summary, score) and one.name not in lone
    ]
    if lacking:
        what, hint = unavailable_reason(summary, score)
        yield HarnessError(where, f"{_quote_names(lacking)} will not come to {axis!r}: {what}", hint)


def _is_measured_differently(arm: PlannedArm, other: PlannedArm, score: str, *, summary: bool) -> bool:
    """Whether two arms measure a score by other options, in a suite that both have. score: `suite/score`, or of a
    summary what it calls the score, in any suite."""
    made = [_metric_options(variant, score, summary=summary) for variant in (arm, other)]
    return any(made[0][suite] != made[1][suite] for suite in made[0].keys() & made[1].keys())


def _metric_options(arm: PlannedArm, score: str, *, summary: bool) -> dict[str, tuple[str, Mapping[str, Any]]]:
    """Suite -> the metric that gives a score there, and its options."""
    called = gate.summary_score_names(arm.metrics)
    return {
        suite.name: (name, suite.metrics[name])
        for suite in arm.plan.suites
        for name, metric in arm.metrics[suite.name].items()
        for own in metric.score_names
        if score == (called[name, own] if summary else f"{suite.name}/{own}")
    }


def _quote_names(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names))
