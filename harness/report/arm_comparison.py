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
from harness.report.finished_run import FinishedRun
from harness.report.intransigence import Intransigence, compute_intransigence
from harness.report.not_comparable import have_shared_items, is_comparable, measured_alike, not_compared_notes
from harness.report.paired_difference import (
    ScoredEvaluation,
    align_items,
    compare_scores,
    corrected_verdict,
    item_statistics,
    require_same_signature,
    trials_for_comparisons,
)
from harness.report.recommendation import ArmPoint, Recommendation, recommend
from harness.report.run_report import Verdict, estimate_of_score, gate_scores_of_run
from harness.report.spec_diff import find_swept_parameter
from harness.report.weight_variants import WeightVariant, negated
from harness.seeding import derive_seed
from harness.spec.arms import FORGETTING_SIGN, default_axes, is_summary_axis
from harness.statistics import forgetting as forgetting_module
from harness.statistics.intervals import Estimate, difference
from harness.statistics.significance import holm
from harness.types import Evaluation, Role, Score
from harness.utils.json_files import json_safe, write_json

MetricsBySuite = Mapping[str, Mapping[str, Metric]]

__all__ = ["ArmComparison", "ArmPoint", "ArmScore", "Recommendation", "compare_arms", "recommend"]


@dataclass(frozen=True)
class ArmScore:
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
class ArmComparison:
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
    scores: tuple[ArmScore, ...]
    gain: str
    forgetting: str
    points: tuple[ArmPoint, ...]
    missing: Mapping[str, str]
    advised: Recommendation
    joint: str | None = None
    intransigence: tuple[Intransigence, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def recommendation_text(self) -> str:
        """What the comparison comes to, in sentences."""
        return self.advised.full_text

    def to_json(self) -> dict[str, Any]:
        """The experiment as plain data for JSON."""
        made: dict[str, Any] = json_safe(asdict(self) | {"advice": self.recommendation_text})
        return made

    def write(self, folder: Path) -> None:
        """Write `arms.json` into the experiment's folder."""
        write_json(folder / "arms.json", self.to_json(), indent=2)


def compare_arms(
    name: str,
    folder: Path,
    arms: Mapping[str, FinishedRun],
    metrics: MetricsBySuite,
    *,
    seed: int,
    baseline: str | None = None,
    gain_score: str | None = None,
    forgetting_score: str | None = None,
    missing: Mapping[str, str] | None = None,
    joint: str | None = None,
) -> ArmComparison:
    """Compare the arms over the items that all of them were measured on.

    arms: name -> its finished run, in the order of the spec. metrics: suite -> metric name -> instance.
    joint: the arm that trained on all tasks together, if any.
    baseline: None: the first arm that has a result. gain_score, forgetting_score: `suite/score`; None: the first score
    of the first domain suite, and that of the first general suite with the same name if it has one. forgetting_score
    also as `summary:score`, a number drawn from each run's stage × suite matrix (`FORGETTING_SIGN`), as its report has it.
    Raises HarnessError when no arm has a result, or a score is in none of them.
    """
    if not arms:
        raise HarnessError(str(folder), "no arm has a result", "run it again: harness run --resume")
    base = baseline if baseline is not None and baseline in arms else next(iter(arms))
    roles = _suite_roles(arms[base])
    gain_score, lost = _select_axes(arms[base], roles, gain_score, forgetting_score)
    compared = _compare_all_scores(arms, base, roles, metrics, seed)
    otherwise = [
        arm
        for arm, run in arms.items()
        if not all(measured_alike(run, arms[base], axis) for axis in (gain_score, lost))
    ]
    weighed = [arm for arm in arms if arm != joint and arm not in otherwise]
    points = _arm_points(arms, base, gain_score, lost, metrics, seed, joint, weighed)

    paired = not is_summary_axis(lost) and have_shared_items(arms.values(), lost.partition("/")[0])

    def more(one: ArmPoint, other: ArmPoint) -> Estimate:
        """Over the same items; the base model, which both are measured against, drops out."""
        return _forgetting_difference(arms[other.arm], arms[one.arm], lost, metrics, seed)

    return ArmComparison(
        name=name,
        folder=str(folder),
        baseline=base,
        arms={arm: str(run.folder) for arm, run in arms.items()},
        scores=compared,
        gain=gain_score,
        forgetting=lost,
        points=points,
        missing=dict(missing or {}),
        advised=recommend(
            [one for one in points if one.arm in weighed],
            gain_score,
            lost,
            find_swept_parameter({arm: arms[arm].spec for arm in weighed}),
            forgetting_difference=more if paired else None,
            note="; ".join(_recommendation_notes(baseline, base, otherwise)),
        ),
        joint=joint,
        intransigence=compute_intransigence(arms, joint, metrics, seed=seed)
        if joint is not None and joint in arms
        else (),
        notes=not_compared_notes(arms, base),
    )


def _recommendation_notes(
    baseline: str | None, used_baseline: str, measured_differently: Sequence[str]
) -> Iterator[str]:
    """What to know before the advice."""
    if baseline not in (None, used_baseline):
        yield f"the baseline {baseline!r} has no result yet"
    if measured_differently:
        named = ", ".join(map(repr, measured_differently))
        yield f"{named} was measured otherwise than {used_baseline!r} in what arms are compared by, and is not weighed"


def _suite_roles(run: FinishedRun) -> dict[str, Role]:
    return {name: suite["role"] for name, suite in run.spec["evaluate"].items()}


def _select_axes(
    run: FinishedRun, roles: Mapping[str, Role], gain_score: str | None, forgetting_score: str | None
) -> tuple[str, str]:
    by_role: dict[str, list[str]] = {"domain": [], "general": []}
    for suite, role in roles.items():
        last = run.last_evaluation(suite)
        by_role[role] += [
            f"{suite}/{score.name}" for score in (last.scores if last else ()) if score.higher_is_better is not None
        ]
    known = by_role["domain"] + by_role["general"]
    losses = (
        [one for one in gate_scores_of_run(run.folder) if one.partition(":")[0] in FORGETTING_SIGN]
        if is_summary_axis(forgetting_score)
        else []
    )
    for given, some in ((gain_score, known), (forgetting_score, losses or known)):
        if given is not None and given not in some:
            what = "the run has no summary" if is_summary_axis(given) else "no suite has the score"
            raise HarnessError("arms", f"{what} {given!r}", f"there are: {', '.join(some)}")
    chosen = default_axes(by_role, gain_score, forgetting_score)
    if chosen is None:
        what = "gain and forgetting need a suite of each role, domain and general"
        raise HarnessError("arms", what, "add one to evaluate, or name the scores in arms.gain and arms.forgetting")
    return chosen


def _compare_all_scores(
    arms: Mapping[str, FinishedRun], baseline: str, roles: Mapping[str, Role], metrics: MetricsBySuite, seed: int
) -> tuple[ArmScore, ...]:
    pairs = [
        (arm, role, score, first, last, other)
        for arm, run in arms.items()
        for suite, role in roles.items()
        if (first := _first_evaluation(run, suite))
        and (last := run.last_evaluation(suite))
        and (other := arms[baseline].last_evaluation(suite))
        for score in last.scores
        if is_comparable(score, last, other)
    ]
    trials = trials_for_comparisons(sum(arm != baseline for arm, *_ in pairs))
    made = [_compare_one_score(*pair, baseline=baseline, metrics=metrics, seed=seed, trials=trials) for pair in pairs]
    adjusted = holm([math.nan if one.p is None else one.p for one in made])
    for number, (one, p) in enumerate(zip(made, adjusted, strict=True)):
        if one.against is not None:
            made[number] = replace(one, p_holm=p, verdict=corrected_verdict(one.against, one.higher_is_better, p))
    return tuple(made)


def _compare_one_score(
    arm: str,
    role: Role,
    score: Score,
    first_evaluation: Evaluation,
    last_evaluation: Evaluation,
    baseline_evaluation: Evaluation,
    *,
    baseline: str,
    metrics: MetricsBySuite,
    seed: int,
    trials: int,
) -> ArmScore:
    metric = metrics[last_evaluation.suite][score.metric]
    before = _matching_score(first_evaluation, score)
    change = _paired_difference(
        (first_evaluation, before), (last_evaluation, score), metric, derive_seed(seed, "report", last_evaluation.suite)
    )
    against = None
    if arm != baseline:
        pair = (baseline_evaluation, _matching_score(baseline_evaluation, score)), (last_evaluation, score)
        against = compare_scores(
            *pair, _shared_item_ids(*pair), metric, seed=derive_seed(seed, "arms", last_evaluation.suite), trials=trials
        )
    return ArmScore(
        arm=arm,
        suite=last_evaluation.suite,
        role=role,
        score=score.name,
        higher_is_better=score.higher_is_better,
        n=change.n,
        before=estimate_of_score(before),
        after=estimate_of_score(score),
        change=change,
        against=None if against is None else against.difference,
        p=None if against is None else against.p,
        p_holm=None,
        verdict=None,
        test=None if against is None else against.test,
    )


def _arm_points(
    arms: Mapping[str, FinishedRun],
    baseline: str,
    gain_score: str,
    forgetting_score: str,
    metrics: MetricsBySuite,
    seed: int,
    joint: str | None,
    compared_arms: Sequence[str],
) -> tuple[ArmPoint, ...]:
    """compared_arms: the arms that are methods, and measured as the baseline was; what is no method beats none."""
    gains = {arm: _improvement(run, gain_score, metrics, seed) for arm, run in arms.items()}
    losses = {
        arm: _forgetting_of_run(run, forgetting_score, metrics, seed, required=arm != joint)
        for arm, run in arms.items()
    }
    names = list(arms)
    efficient = {
        compared_arms[i]
        for i in forgetting_module.pareto([(gains[arm].value, losses[arm].value) for arm in compared_arms])
    }
    naive = losses[baseline]
    return tuple(
        ArmPoint(
            arm,
            gains[arm],
            losses[arm],
            None
            if arm == baseline or arm not in (*compared_arms, joint)
            else forgetting_module.fraction_recovered(losses[arm].value, naive.value, naive.stderr),
            arm in efficient,
        )
        for arm in names
    )


def variant_point(variant: WeightVariant, name: str, gain_score: str, forgetting_score: str) -> ArmPoint | None:
    """A variant as a point beside the arms; None where it was not measured by these scores."""
    gained, worse = variant.improvement_on(gain_score), variant.degradation_on(forgetting_score)
    return None if gained is None or worse is None else ArmPoint(name, gained, worse, None, efficient=False)


def _forgetting_of_run(
    run: FinishedRun, forgetting_score: str, metrics: MetricsBySuite, seed: int, *, required: bool
) -> Estimate:
    """What a run forgot, positive where it did. required: False: NaN where its matrix does not come to that."""
    if not is_summary_axis(forgetting_score):
        return negated(_improvement(run, forgetting_score, metrics, seed))
    found = gate_scores_of_run(run.folder).get(forgetting_score)
    if found is None and not required:  # of all tasks in one stage none is earlier than another
        return Estimate(math.nan, math.nan, math.nan, math.nan, 0)
    if found is None:
        what = f"the run has no summary {forgetting_score!r}"
        raise HarnessError(
            str(run.folder), what, "it needs a suite of an earlier stage; name another in arms.forgetting"
        )
    return found.after if FORGETTING_SIGN[forgetting_score.partition(":")[0]] > 0 else negated(found.after)


def _forgetting_difference(
    run: FinishedRun, other: FinishedRun, score: str, metrics: MetricsBySuite, seed: int
) -> Estimate:
    """How much worse a score ended in `other` than in `run`, over the same items."""
    suite, _, name = score.partition("/")
    ends = [one.last_evaluation(suite) for one in (run, other)]
    first, second = (next(one for one in end.scores if one.name == name) for end in ends if end is not None)
    assert ends[0] is not None  # `_points` found the score in both
    assert ends[1] is not None
    metric = metrics[suite][first.metric]
    gap = _paired_difference((ends[0], first), (ends[1], second), metric, derive_seed(seed, "arms", suite))
    return negated(gap) if first.higher_is_better else gap


def _improvement(run: FinishedRun, score: str, metrics: MetricsBySuite, seed: int) -> Estimate:
    """The change of a score over the base model, positive for the better."""
    suite, _, name = score.partition("/")
    first, last = _first_evaluation(run, suite), run.last_evaluation(suite)
    found = next((one for one in last.scores if one.name == name), None) if last else None
    if first is None or last is None or found is None:
        raise HarnessError(
            str(run.folder), f"the run has no score {score!r}", "name another in arms.gain or .forgetting"
        )
    metric = metrics[suite][found.metric]
    change = _paired_difference(
        (first, _matching_score(first, found)), (last, found), metric, derive_seed(seed, "report", suite)
    )
    return change if found.higher_is_better else negated(change)


def _paired_difference(first: ScoredEvaluation, second: ScoredEvaluation, metric: Metric, seed: int) -> Estimate:
    """second − first over the items that both have."""
    ids = _shared_item_ids(first, second)
    name = second[1].name
    sides, ratio = (item_statistics(first, ids), item_statistics(second, ids)), metric.is_ratio(name)
    return difference(*sides, partial(metric.aggregate, name), seed=seed, ratio=ratio)


def _shared_item_ids(first: ScoredEvaluation, second: ScoredEvaluation) -> tuple[str, ...]:
    ids = align_items(first[0], second[0]).ids
    if not ids:
        raise HarnessError("arms", f"two arms share no item of {first[0].suite!r}", "give them the same held-out rows")
    return ids


def _first_evaluation(run: FinishedRun, suite: str) -> Evaluation | None:
    """The suite where it was measured first: on the base model, or where a run that goes on from another begins."""
    return next((one for stage in run.evaluations for one in stage if one.suite == suite), None)


def _matching_score(evaluation: Evaluation, reference: Score) -> Score:
    found = evaluation.matching_score(reference)
    if found is not None:
        require_same_signature(evaluation.suite, found, reference)
        return found
    raise HarnessError(
        "arms", f"an arm has no score {reference.name!r} of {evaluation.suite!r}", "measure the same in all"
    )
