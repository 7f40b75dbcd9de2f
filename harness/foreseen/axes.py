"""What arms are compared by, known before any of them has run: that each of them will measure it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from harness.arms import is_summary
from harness.contracts import Plan, Role
from harness.errors import HarnessError, raise_all
from harness.foreseen import OF_STAGES, Metrics, directed_names, has_one_stage
from harness.spec import Spec


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
    asked = {"gain": given["gain"], "forgetting": given["forgetting"]}
    if (asked["gain"] is None and not scores["domain"]) or (asked["forgetting"] is None and not scores["general"]):
        what = "gain and forgetting need a suite of each role, domain and general, whose score is better one way"
        hint = "add one to evaluate, or name the scores in arms.gain and arms.forgetting"
        raise HarnessError(spec.where(("arms",)), what, hint)
    gain = asked["gain"] or scores["domain"][0]
    same = [one for one in scores["general"] if one.partition("/")[2] == gain.partition("/")[2]]
    lost = asked["forgetting"] or (same or scores["general"])[0]
    raise_all(
        error for key, axis in (("gain", gain), ("forgetting", lost)) for error in _lacking(spec, key, axis, variants)
    )


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
    """What is wrong with one axis: no arm measures it, or one does not."""
    score = axis.partition(":")[2] if is_summary(axis) else axis
    known = {one.name: directed_names(one.metrics) if is_summary(axis) else _directed(one) for one in variants}
    without = [name for name, scores in known.items() if score not in scores]
    where = spec.where(("arms", key))
    if len(without) == len(variants):
        there = ", ".join(dict.fromkeys(score for scores in known.values() for score in scores)) or "none"
        yield HarnessError(where, f"no arm gives a score {score!r} that is better one way", f"there are: {there}")
        return
    lone = [one.name for one in variants if has_one_stage(one.plan) and one.name != spec.document["arms"]["joint"]]
    if is_summary(axis) and axis.partition(":")[0] in OF_STAGES and lone:
        what = f"{axis!r} is about several stages, and {', '.join(map(repr, lone))} has one"
        yield HarnessError(where, what, "name a score of a general suite, or give the arms stages (mode continual)")
    if without:
        what = f"the arms are compared by {axis!r}, which {', '.join(map(repr, without))} will not measure"
        yield HarnessError(where, what, f"measure it in every arm, or name another in arms.{key}")
