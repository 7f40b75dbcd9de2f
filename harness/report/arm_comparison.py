"""Arms side by side: what each gained and forgot, against the base model and against one another.

Knows the scores that finished runs left in their folders, and how to compare them over the same items.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from harness.errors import HarnessError
from harness.interfaces.metric import Metric
from harness.report.finished_run import Kept
from harness.report.intransigence import Intransigence, against
from harness.report.not_comparable import alike, comparable, left_out, share_items
from harness.report.paired_difference import Side, align, compared, judged, require_one_way, trials_for, vectors
from harness.report.recommendation import Advice, Point, advise
from harness.report.run_report import Verdict, estimate_of, measured_of
from harness.report.spec_diff import swept
from harness.report.weight_variants import Variant, turned
from harness.seeding import derive
from harness.spec.arms import LOSSES, axes, is_summary
from harness.statistics import forgetting as forgetting_module
from harness.statistics.intervals import Estimate, difference
from harness.statistics.significance import holm
from harness.types import Evaluation, Role, Score
from harness.utils.json_files import plain, write_json

Metrics = Mapping[str, Mapping[str, Metric]]

__all__ = ["Advice", "Compared", "Experiment", "Point", "advise", "make"]


@dataclass(frozen=True)
class Compared:
    """One score of one arm. against: the difference arm − baseline over the same items, None for the baseline itself.

    before: the base model. after: the arm's last stage. change: after − before. p: of "no difference to the baseline",
    by `test` (see `paired.compared`); p_holm: adjusted for every comparison of the experiment. verdict: on `against`,
    by `p_holm` at 5 % and its interval.
    """

    arm: str
    suite: str
    role: Role
    score: str
    higher_is_better: bool | None
    n: int
    before: Estimate
    after: Estimate
    change: Estimate
    against: Estimate | None
    p: float | None
    p_holm: float | None
    verdict: Verdict | None
    test: str | None = None


@dataclass(frozen=True)
class Experiment:
    """Every arm of an experiment compared. gain, forgetting: the scores, as `suite/score`, that the points are made of;
    forgetting also as `summary:score`.

    missing: arms that have no result, with the reason. joint: the arm on all tasks together, a reference and no method;
    intransigence: of every other arm against it, none where it has no result. advised: what the comparison comes to.
    notes: what some arms could not be compared by, and why.
    """

    name: str
    folder: str
    baseline: str
    arms: Mapping[str, str]
    scores: tuple[Compared, ...]
    gain: str
    forgetting: str
    points: tuple[Point, ...]
    missing: Mapping[str, str]
    advised: Advice
    joint: str | None = None
    intransigence: tuple[Intransigence, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def advice(self) -> str:
        """What the comparison comes to, in sentences."""
        return self.advised.text

    def to_json(self) -> dict[str, Any]:
        """The experiment as plain data for JSON."""
        made: dict[str, Any] = plain(asdict(self) | {"advice": self.advice})
        return made

    def write(self, folder: Path) -> None:
        """Write `arms.json` into the experiment's folder."""
        write_json(folder / "arms.json", self.to_json(), indent=2)


def make(
    name: str,
    folder: Path,
    arms: Mapping[str, Kept],
    metrics: Metrics,
    *,
    seed: int,
    baseline: str | None = None,
    gain: str | None = None,
    forgetting_score: str | None = None,
    missing: Mapping[str, str] | None = None,
    joint: str | None = None,
) -> Experiment:
    """Compare the arms over the items that all of them were measured on.

    arms: name -> its finished run, in the order of the spec. metrics: suite -> metric name -> instance.
    joint: the arm that trained on all tasks together, if any.
    baseline: None: the first arm that has a result. gain, forgetting_score: `suite/score`; None: the first score of the
    first domain suite, and that of the first general suite with the same name if it has one. forgetting_score also as
    `summary:score`, a number drawn from each run's stage × suite matrix (`LOSSES`), as its report has it.
    Raises HarnessError when no arm has a result, or a score is in none of them.
    """
    if not arms:
        raise HarnessError(str(folder), "no arm has a result", "run it again: harness run --resume")
    base = baseline if baseline is not None and baseline in arms else next(iter(arms))
    roles = _roles(arms[base])
    gain, lost = _axes(arms[base], roles, gain, forgetting_score)
    compared = _compared(arms, base, roles, metrics, seed)
    otherwise = [arm for arm, run in arms.items() if not all(alike(run, arms[base], axis) for axis in (gain, lost))]
    weighed = [arm for arm in arms if arm != joint and arm not in otherwise]
    points = _points(arms, base, gain, lost, metrics, seed, joint, weighed)

    paired = not is_summary(lost) and share_items(arms.values(), lost.partition("/")[0])

    def more(one: Point, other: Point) -> Estimate:
        """Over the same items; the base model, which both are measured against, drops out."""
        return _difference(arms[other.arm], arms[one.arm], lost, metrics, seed)

    return Experiment(
        name=name,
        folder=str(folder),
        baseline=base,
        arms={arm: str(run.folder) for arm, run in arms.items()},
        scores=compared,
        gain=gain,
        forgetting=lost,
        points=points,
        missing=dict(missing or {}),
        advised=advise(
            [one for one in points if one.arm in weighed],
            gain,
            lost,
            swept({arm: arms[arm].spec for arm in weighed}),
            more=more if paired else None,
            note="; ".join(_to_know(baseline, base, otherwise)),
        ),
        joint=joint,
        intransigence=against(arms, joint, metrics, seed=seed) if joint is not None and joint in arms else (),
        notes=left_out(arms, base),
    )


def _to_know(baseline: str | None, base: str, otherwise: Sequence[str]) -> Iterator[str]:
    """What to know before the advice."""
    if baseline not in (None, base):
        yield f"the baseline {baseline!r} has no result yet"
    if otherwise:
        named = ", ".join(map(repr, otherwise))
        yield f"{named} was measured otherwise than {base!r} in what arms are compared by, and is not weighed"


def _roles(run: Kept) -> dict[str, Role]:
    return {name: suite["role"] for name, suite in run.spec["evaluate"].items()}


def _axes(run: Kept, roles: Mapping[str, Role], gain: str | None, lost: str | None) -> tuple[str, str]:
    by_role: dict[str, list[str]] = {"domain": [], "general": []}
    for suite, role in roles.items():
        last = run.last(suite)
        by_role[role] += [
            f"{suite}/{score.name}" for score in (last.scores if last else ()) if score.higher_is_better is not None
        ]
    known = by_role["domain"] + by_role["general"]
    losses = [one for one in measured_of(run.folder) if one.partition(":")[0] in LOSSES] if is_summary(lost) else []
    for given, some in ((gain, known), (lost, losses or known)):
        if given is not None and given not in some:
            what = "the run has no summary" if is_summary(given) else "no suite has the score"
            raise HarnessError("arms", f"{what} {given!r}", f"there are: {', '.join(some)}")
    chosen = axes(by_role, gain, lost)
    if chosen is None:
        what = "gain and forgetting need a suite of each role, domain and general"
        raise HarnessError("arms", what, "add one to evaluate, or name the scores in arms.gain and arms.forgetting")
    return chosen


def _compared(
    arms: Mapping[str, Kept], base: str, roles: Mapping[str, Role], metrics: Metrics, seed: int
) -> tuple[Compared, ...]:
    pairs = [
        (arm, role, score, first, last, other)
        for arm, run in arms.items()
        for suite, role in roles.items()
        if (first := _first(run, suite)) and (last := run.last(suite)) and (other := arms[base].last(suite))
        for score in last.scores
        if comparable(score, last, other)
    ]
    trials = trials_for(sum(arm != base for arm, *_ in pairs))
    made = [_one(*pair, base=base, metrics=metrics, seed=seed, trials=trials) for pair in pairs]
    adjusted = holm([math.nan if one.p is None else one.p for one in made])
    for number, (one, p) in enumerate(zip(made, adjusted, strict=True)):
        if one.against is not None:
            made[number] = replace(one, p_holm=p, verdict=judged(one.against, one.higher_is_better, p))
    return tuple(made)


def _one(
    arm: str,
    role: Role,
    score: Score,
    first: Evaluation,
    last: Evaluation,
    other: Evaluation,
    *,
    base: str,
    metrics: Metrics,
    seed: int,
    trials: int,
) -> Compared:
    metric = metrics[last.suite][score.metric]
    before = _find(first, score)
    change = _change_of((first, before), (last, score), metric, derive(seed, "report", last.suite))
    against = None
    if arm != base:
        pair = (other, _find(other, score)), (last, score)
        against = compared(*pair, _shared(*pair), metric, seed=derive(seed, "arms", last.suite), trials=trials)
    return Compared(
        arm=arm,
        suite=last.suite,
        role=role,
        score=score.name,
        higher_is_better=score.higher_is_better,
        n=change.n,
        before=estimate_of(before),
        after=estimate_of(score),
        change=change,
        against=None if against is None else against.difference,
        p=None if against is None else against.p,
        p_holm=None,
        verdict=None,
        test=None if against is None else against.test,
    )


def _points(
    arms: Mapping[str, Kept],
    base: str,
    gain: str,
    lost: str,
    metrics: Metrics,
    seed: int,
    joint: str | None,
    weighed: Sequence[str],
) -> tuple[Point, ...]:
    """weighed: the arms that are methods, and measured as the baseline was; what is no method beats none."""
    gains = {arm: _change(run, gain, metrics, seed) for arm, run in arms.items()}
    losses = {arm: _lost(run, lost, metrics, seed, needed=arm != joint) for arm, run in arms.items()}
    names = list(arms)
    efficient = {
        weighed[i] for i in forgetting_module.pareto([(gains[arm].value, losses[arm].value) for arm in weighed])
    }
    naive = losses[base]
    return tuple(
        Point(
            arm,
            gains[arm],
            losses[arm],
            None
            if arm == base or arm not in (*weighed, joint)
            else forgetting_module.recovered(losses[arm].value, naive.value, naive.stderr),
            arm in efficient,
        )
        for arm in names
    )


def point_of(variant: Variant, name: str, gain: str, lost: str) -> Point | None:
    """A variant as a point beside the arms; None where it was not measured by these scores."""
    gained, worse = variant.better(gain), variant.worse(lost)
    return None if gained is None or worse is None else Point(name, gained, worse, None, efficient=False)


def _lost(run: Kept, lost: str, metrics: Metrics, seed: int, *, needed: bool) -> Estimate:
    """What a run forgot, positive where it did. needed: False: NaN where its matrix does not come to that."""
    if not is_summary(lost):
        return turned(_change(run, lost, metrics, seed))
    found = measured_of(run.folder).get(lost)
    if found is None and not needed:  # of all tasks in one stage none is earlier than another
        return Estimate(math.nan, math.nan, math.nan, math.nan, 0)
    if found is None:
        what = f"the run has no summary {lost!r}"
        raise HarnessError(
            str(run.folder), what, "it needs a suite of an earlier stage; name another in arms.forgetting"
        )
    return found.after if LOSSES[lost.partition(":")[0]] > 0 else turned(found.after)


def _difference(run: Kept, other: Kept, score: str, metrics: Metrics, seed: int) -> Estimate:
    """How much worse a score ended in `other` than in `run`, over the same items."""
    suite, _, name = score.partition("/")
    ends = [one.last(suite) for one in (run, other)]
    first, second = (next(one for one in end.scores if one.name == name) for end in ends if end is not None)
    assert ends[0] is not None  # `_points` found the score in both
    assert ends[1] is not None
    metric = metrics[suite][first.metric]
    gap = _change_of((ends[0], first), (ends[1], second), metric, derive(seed, "arms", suite))
    return turned(gap) if first.higher_is_better else gap


def _change(run: Kept, score: str, metrics: Metrics, seed: int) -> Estimate:
    """The change of a score over the base model, positive for the better."""
    suite, _, name = score.partition("/")
    first, last = _first(run, suite), run.last(suite)
    found = next((one for one in last.scores if one.name == name), None) if last else None
    if first is None or last is None or found is None:
        raise HarnessError(
            str(run.folder), f"the run has no score {score!r}", "name another in arms.gain or .forgetting"
        )
    metric = metrics[suite][found.metric]
    change = _change_of((first, _find(first, found)), (last, found), metric, derive(seed, "report", suite))
    return change if found.higher_is_better else turned(change)


def _change_of(first: Side, second: Side, metric: Metric, seed: int) -> Estimate:
    """second − first over the items that both have."""
    ids = _shared(first, second)
    name = second[1].name
    sides, ratio = (vectors(first, ids), vectors(second, ids)), metric.is_ratio(name)
    return difference(*sides, partial(metric.aggregate, name), seed=seed, ratio=ratio)


def _shared(first: Side, second: Side) -> tuple[str, ...]:
    ids = align(first[0], second[0]).ids
    if not ids:
        raise HarnessError("arms", f"two arms share no item of {first[0].suite!r}", "give them the same held-out rows")
    return ids


def _first(run: Kept, suite: str) -> Evaluation | None:
    """The suite where it was measured first: on the base model, or where a run that goes on from another begins."""
    return next((one for stage in run.evaluations for one in stage if one.suite == suite), None)


def _find(evaluation: Evaluation, like: Score) -> Score:
    found = evaluation.like(like)
    if found is not None:
        require_one_way(evaluation.suite, found, like)
        return found
    raise HarnessError("arms", f"an arm has no score {like.name!r} of {evaluation.suite!r}", "measure the same in all")
