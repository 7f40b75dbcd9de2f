"""Check, before any arm runs, that every arm will measure the scores by which arms are compared."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from harness import gate
from harness.errors import HarnessError, raise_all
from harness.spec.arms import baseline_names, is_summary_axis
from harness.spec.held_out_options import is_split_by_seed
from harness.spec.matrix_summaries import NEEDS_SEVERAL_STAGES, has_one_stage, is_unavailable, unavailable_reason
from harness.spec.preflight import MetricsBySuite, scores_with_direction
from harness.spec.primary_score import ScoredSuite, default_axes
from harness.spec.spec import Spec
from harness.types import Plan


@dataclass(frozen=True)
class PlannedArm:
    """An arm, with one of its seeds: its plan and its metrics."""

    name: str
    plan: Plan
    metrics: MetricsBySuite


def preflight_arms(spec: Spec, arms: Sequence[PlannedArm]) -> None:
    """Check that every arm will measure `arms.gain` and `arms.forgetting`.

    Args:
        spec: The spec. Scores that it does not name are chosen by `default_axes`, from the baseline's suites.
        arms: The arms that will run.

    Raises:
        HarnessError: An arm does not measure a score, or measures it with other options.
    """
    arms_spec = spec.document["arms"]
    baseline = next((arm for arm in arms if arm.name in baseline_names(arms_spec)[:1]), arms[0])
    suites = [
        ScoredSuite(suite.name, suite.role, suite.primary, baseline.metrics[suite.name])
        for suite in baseline.plan.suites
    ]
    axes = default_axes(suites, arms_spec["gain"], arms_spec["forgetting"])
    if axes is None:
        what = "gain and forgetting need a domain suite and a general suite with a score that has a direction"
        hint = "add one to evaluate, or name the scores in arms.gain and arms.forgetting"
        raise HarnessError(spec.where(("arms",)), what, hint)
    named_axes = zip(("gain", "forgetting"), axes, strict=True)
    raise_all(error for key, axis in named_axes for error in _axis_errors(spec, key, axis, arms))


def axis_warnings(arms: Sequence[PlannedArm]) -> Iterator[str]:
    """Yield a warning if the seeds hold out different rows.

    Args:
        arms: Every arm with every seed.
    """
    split_sources = {
        suite.source
        for arm in arms
        for suite in arm.plan.suites
        if is_split_by_seed(arm.plan.sources[suite.source][1]["held_out"])
    }
    if split_sources and len({arm.plan.seed for arm in arms}) > 1:
        yield (
            f"each seed holds out other rows of {', '.join(map(repr, sorted(split_sources)))}; arms are compared with "
            "the baseline of the same seed, but intervals are narrower if all seeds share their rows: give the suites "
            "separate sources"
        )


def _directed_suite_scores(arm: PlannedArm) -> list[str]:
    """Return the scores `suite/score` that have a direction."""
    return [
        f"{suite.name}/{name}"
        for suite in arm.plan.suites
        for metric in arm.metrics[suite.name].values()
        for name in metric.score_names
        if metric.higher_is_better is not None
    ]


def _axis_errors(spec: Spec, key: str, axis: str, arms: Sequence[PlannedArm]) -> Iterator[HarnessError]:
    """Yield errors of one axis: no arm measures it, not every arm does, or not all with the same options."""
    score = axis.partition(":")[2] if is_summary_axis(axis) else axis
    known = {
        arm.name: scores_with_direction(arm.metrics) if is_summary_axis(axis) else _directed_suite_scores(arm)
        for arm in arms
    }
    without = [name for name, scores in known.items() if score not in scores]
    where = spec.where(("arms", key))
    if len(without) == len(arms):
        available = ", ".join(dict.fromkeys(score for scores in known.values() for score in scores)) or "none"
        yield HarnessError(where, f"no arm has a score {score!r} with a direction", f"available: {available}")
        return
    if without:
        what = f"the arms are compared by {axis!r}, which {_quote_names(without)} does not measure"
        yield HarnessError(where, what, f"measure it in every arm, or name another score in arms.{key}")
    with_score = [arm for arm in arms if arm.name not in without]
    if is_summary_axis(axis):
        needed = [arm for arm in with_score if arm.name != spec.document["arms"]["joint"]]
        yield from _unavailable_axis_errors(where, axis, needed)
    first = with_score[0]
    different = [
        arm.name for arm in with_score[1:] if _is_measured_differently(first, arm, score, summary=is_summary_axis(axis))
    ]
    if different:
        hint = f"give its metric the same options in every arm, or name another score in arms.{key}"
        what = f"{_quote_names(different)} measures it with other options than {first.name!r}"
        yield HarnessError(where, f"the arms are compared by {axis!r}, but {what}", hint)


def _unavailable_axis_errors(where: str, axis: str, arms: Sequence[PlannedArm]) -> Iterator[HarnessError]:
    """Yield errors of a summary that the matrix of some arm cannot produce."""
    summary, _, score = axis.partition(":")
    one_stage = [arm.name for arm in arms if summary in NEEDS_SEVERAL_STAGES and has_one_stage(arm.plan)]
    if one_stage:
        what = f"{axis!r} needs several stages, but {_quote_names(one_stage)} has one"
        yield HarnessError(where, what, "name a score of a general suite, or give the arms stages (mode continual)")
    without = [
        arm.name for arm in arms if is_unavailable(arm.plan, arm.metrics, summary, score) and arm.name not in one_stage
    ]
    if without:
        what, hint = unavailable_reason(summary, score)
        yield HarnessError(where, f"{_quote_names(without)} cannot produce {axis!r}: {what}", hint)


def _is_measured_differently(arm: PlannedArm, other: PlannedArm, score: str, *, summary: bool) -> bool:
    """Return whether two arms measure a score with different options in a suite that both have.

    Args:
        arm: One arm.
        other: The other arm.
        score: `suite/score`; for a summary, the summary's name of the score, in any suite.
        summary: Whether the score is that of a summary.
    """
    first, second = (_metric_options(planned, score, summary=summary) for planned in (arm, other))
    return any(first[suite] != second[suite] for suite in first.keys() & second.keys())


def _metric_options(arm: PlannedArm, score: str, *, summary: bool) -> dict[str, tuple[str, Mapping[str, Any]]]:
    """Return suite -> the metric that produces a score there, with its options."""
    summary_names = gate.summary_score_names(arm.metrics)
    return {
        suite.name: (name, suite.metrics[name])
        for suite in arm.plan.suites
        for name, metric in arm.metrics[suite.name].items()
        for score_name in metric.score_names
        if score == (summary_names[name, score_name] if summary else f"{suite.name}/{score_name}")
    }


def _quote_names(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names))
