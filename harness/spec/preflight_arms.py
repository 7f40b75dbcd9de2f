"""What arms are compared by, known before any of them has run: that each of them will measure it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from harness import gate
from harness.errors import HarnessError, raise_all
from harness.spec.arms import axes, is_summary
from harness.spec.matrix_summaries import OF_STAGES, has_one_stage, lacks, why
from harness.spec.preflight import Metrics, directed_names
from harness.spec.spec import Spec
from harness.types import Plan, Role


@dataclass(frozen=True)
class Variant:
    """An arm, called `name`, and what it will measure."""

    name: str
    plan: Plan
    metrics: Metrics


def check(spec: Spec, variants: Sequence[Variant]) -> None:
    """Raise HarnessError unless every arm will measure what the arms are compared by, `arms.gain` and `.forgetting`.

    variants: the arms that are to run. Where the spec names no score, it is the first of the baseline's that will do.
    """
    given = spec.document["arms"]
    base = next((one for one in variants if one.name == given["baseline"]), variants[0])
    scores = {role: _directed(base, role) for role in ("domain", "general")}
    chosen = axes(scores, given["gain"], given["forgetting"])
    if chosen is None:
        what = "gain and forgetting need a suite of each role, domain and general, whose score is better one way"
        hint = "add one to evaluate, or name the scores in arms.gain and arms.forgetting"
        raise HarnessError(spec.where(("arms",)), what, hint)
    named = zip(("gain", "forgetting"), chosen, strict=True)
    raise_all(error for key, axis in named for error in _lacking(spec, key, axis, variants))


def told(variants: Sequence[Variant]) -> Iterator[str]:
    """What a person should know of arms that are to be compared: held-out rows that are not the same ones."""
    drawn = {
        suite.source for one in variants for suite in one.plan.suites if one.plan.sources[suite.source][1]["held_out"]
    }
    if drawn and len({one.plan.seed for one in variants}) > 1:
        yield (
            f"the arms have other seeds and so other held-out rows of {', '.join(map(repr, sorted(drawn)))}: they are "
            "compared over those that they share; give the suites sources of their own to share all"
        )


def _directed(one: Variant, role: Role | None = None) -> list[str]:
    """The scores, as `suite/score`, that are better one way; role: of such suites alone."""
    return [
        f"{suite.name}/{name}"
        for suite in one.plan.suites
        if role in (None, suite.role)
        for metric in one.metrics[suite.name].values()
        for name in metric.names
        if metric.higher_is_better is not None
    ]


def _lacking(spec: Spec, key: str, axis: str, variants: Sequence[Variant]) -> Iterator[HarnessError]:
    """What is wrong with one axis: no arm measures it, or not every one, or not all alike."""
    score = axis.partition(":")[2] if is_summary(axis) else axis
    known = {one.name: directed_names(one.metrics) if is_summary(axis) else _directed(one) for one in variants}
    without = [name for name, scores in known.items() if score not in scores]
    where = spec.where(("arms", key))
    if len(without) == len(variants):
        there = ", ".join(dict.fromkeys(score for scores in known.values() for score in scores)) or "none"
        yield HarnessError(where, f"no arm gives a score {score!r} that is better one way", f"there are: {there}")
        return
    if without:
        what = f"the arms are compared by {axis!r}, which {_listed(without)} will not measure"
        yield HarnessError(where, what, f"measure it in every arm, or name another in arms.{key}")
    having = [one for one in variants if one.name not in without]
    if is_summary(axis):
        needed = [one for one in having if one.name != spec.document["arms"]["joint"]]
        yield from _without_number(where, axis, needed)
    otherwise = [one.name for one in having[1:] if _differs(having[0], one, score, summary=is_summary(axis))]
    if otherwise:
        hint = f"give its metric the same options in every arm, or name another in arms.{key}"
        what = f"{_listed(otherwise)} will measure it otherwise than {having[0].name!r}"
        yield HarnessError(where, f"the arms are compared by {axis!r}, and {what}", hint)


def _without_number(where: str, axis: str, variants: Sequence[Variant]) -> Iterator[HarnessError]:
    """What is wrong with an axis that is a summary, which the matrix of some arm will not come to."""
    summary, _, score = axis.partition(":")
    lone = [one.name for one in variants if summary in OF_STAGES and has_one_stage(one.plan)]
    if lone:
        what = f"{axis!r} is about several stages, and {_listed(lone)} has one"
        yield HarnessError(where, what, "name a score of a general suite, or give the arms stages (mode continual)")
    lacking = [one.name for one in variants if lacks(one.plan, one.metrics, summary, score) and one.name not in lone]
    if lacking:
        what, hint = why(summary, score)
        yield HarnessError(where, f"{_listed(lacking)} will not come to {axis!r}: {what}", hint)


def _differs(one: Variant, other: Variant, score: str, *, summary: bool) -> bool:
    """Whether two arms measure a score by other options, in a suite that both have. score: `suite/score`, or of a
    summary what it calls the score, in any suite."""
    made = [_options(variant, score, summary=summary) for variant in (one, other)]
    return any(made[0][suite] != made[1][suite] for suite in made[0].keys() & made[1].keys())


def _options(one: Variant, score: str, *, summary: bool) -> dict[str, tuple[str, Mapping[str, Any]]]:
    """Suite -> the metric that gives a score there, and its options."""
    called = gate.called(one.metrics)
    return {
        suite.name: (name, suite.metrics[name])
        for suite in one.plan.suites
        for name, metric in one.metrics[suite.name].items()
        for own in metric.names
        if score == (called[name, own] if summary else f"{suite.name}/{own}")
    }


def _listed(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names))
