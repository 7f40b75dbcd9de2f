"""Compare the arms of an experiment: gain and forgetting of each, relative to the base model and to the baseline."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
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
    require_same_signature,
    score_difference,
    trials_for_comparisons,
)
from harness.report.recommendation import ArmPoint, Recommendation, recommend
from harness.report.run_report import gate_scores_of_run
from harness.report.score_change import Verdict, estimate_of_score
from harness.report.spec_diff import find_swept_parameter
from harness.report.weight_variants import WeightVariant, negated
from harness.seeding import derive_seed
from harness.spec.arms import FORGETTING_SIGN, default_axes, is_summary_axis
from harness.statistics.forgetting import fraction_recovered, pareto
from harness.statistics.intervals import Estimate
from harness.statistics.significance import holm
from harness.types import Evaluation, Role, Score
from harness.utils.json_files import json_safe, write_json

MetricsBySuite = Mapping[str, Mapping[str, Metric]]

__all__ = ["ArmComparison", "ArmPoint", "ArmScore", "ComparisonSettings", "Recommendation", "compare_arms", "recommend"]


@dataclass(frozen=True)
class ComparisonSettings:
    """How arms are compared: the keys of the spec's `arms`.

    Attributes:
        baseline: The arm with which all are compared; None: the first arm that has a result.
        gain_score: `suite/score`; None: the first score of the first domain suite.
        forgetting_score: `suite/score`, or `summary:score` for a summary of each run's stage × suite matrix
            (`FORGETTING_SIGN`). None: the score of the first general suite with the name of the gain score, if it has
            one.
        joint: The arm that trained on all tasks together, if any.
    """

    baseline: str | None = None
    gain_score: str | None = None
    forgetting_score: str | None = None
    joint: str | None = None


@dataclass(frozen=True)
class ArmScore:
    """One score of one arm.

    Attributes:
        arm: Name of the arm.
        suite: Name of the suite.
        role: Role of the suite.
        score: Name of the score.
        higher_is_better: Direction of the score; None if neither is better.
        n: Number of items.
        before: The score of the base model.
        after: The score after the arm's last stage.
        change: after − before.
        against: arm − baseline over the same items; None for the baseline itself.
        p: p-value for "no difference from the baseline", by `test` (see `compare_scores`).
        p_holm: The p-value, adjusted for every comparison of the experiment.
        verdict: On `against`, by its interval and by `p_holm` at 5 %.
        test: The significance test.
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
    """The comparison of all arms of an experiment.

    Attributes:
        name: Name of the experiment.
        folder: Its folder.
        baseline: The arm with which all are compared.
        arms: Arm -> folder of its run.
        scores: Every score of every arm.
        gain: The gain score, `suite/score`.
        forgetting: The forgetting score, `suite/score` or `summary:score`.
        points: Gain and forgetting of every arm.
        missing: Arm without a result -> reason.
        advised: The recommendation.
        joint: The arm on all tasks together, which is a reference and not a method.
        intransigence: Of every other arm relative to the joint arm.
        notes: The suites and scores by which some arms are not compared, with the reasons.
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
        """The recommendation in sentences."""
        return self.advised.full_text

    def to_json(self) -> dict[str, Any]:
        """Return the comparison as plain data for JSON."""
        document: dict[str, Any] = json_safe(asdict(self) | {"advice": self.recommendation_text})
        return document

    def write(self, folder: Path) -> None:
        """Write `arms.json` into the experiment's folder."""
        write_json(folder / "arms.json", self.to_json(), indent=2)


def compare_arms(
    name: str,
    folder: Path,
    arms: Mapping[str, FinishedRun],
    metrics: MetricsBySuite,
    settings: ComparisonSettings = ComparisonSettings(),
    *,
    seed: int,
    missing: Mapping[str, str] | None = None,
) -> ArmComparison:
    """Compare the arms over the items that all of them have.

    Args:
        name: Name of the experiment.
        folder: Its folder.
        arms: Name -> finished run, in the order of the spec.
        metrics: Suite -> metric name -> metric.
        settings: How the arms are compared.
        seed: Seed of the randomization tests.
        missing: Arm without a result -> reason.

    Raises:
        HarnessError: No arm has a result, or no arm has the gain or forgetting score.
    """
    if not arms:
        raise HarnessError(str(folder), "no arm has a result", f"resume it: harness run --resume {folder}")
    baseline = settings.baseline if settings.baseline in arms else next(iter(arms))
    assert baseline is not None
    experiment = _Experiment(arms, baseline, metrics, seed)
    gain, forgetting = experiment.select_axes(settings.gain_score, settings.forgetting_score)
    scores = experiment.compare_all_scores()

    measured_differently = [
        arm for arm, run in arms.items() if not all(measured_alike(run, arms[baseline], a) for a in (gain, forgetting))
    ]
    methods = [arm for arm in arms if arm != settings.joint and arm not in measured_differently]
    points = experiment.arm_points(gain, forgetting, methods, settings.joint)

    def paired_difference(point: ArmPoint, other: ArmPoint) -> Estimate:
        return experiment.forgetting_difference(arms[other.arm], arms[point.arm], forgetting)

    is_paired = not is_summary_axis(forgetting) and have_shared_items(arms.values(), forgetting.partition("/")[0])
    recommendation = recommend(
        [point for point in points if point.arm in methods],
        gain,
        forgetting,
        find_swept_parameter({arm: arms[arm].spec for arm in methods}),
        forgetting_difference=paired_difference if is_paired else None,
        note="; ".join(_recommendation_notes(settings.baseline, baseline, measured_differently)),
    )
    has_joint = settings.joint is not None and settings.joint in arms
    return ArmComparison(
        name=name,
        folder=str(folder),
        baseline=baseline,
        arms={arm: str(run.folder) for arm, run in arms.items()},
        scores=scores,
        gain=gain,
        forgetting=forgetting,
        points=points,
        missing=dict(missing or {}),
        advised=recommendation,
        joint=settings.joint,
        intransigence=compute_intransigence(arms, str(settings.joint), metrics) if has_joint else (),
        notes=not_compared_notes(arms, baseline),
    )


def variant_point(variant: WeightVariant, name: str, gain_score: str, forgetting_score: str) -> ArmPoint | None:
    """Return a weight variant as a point; None if it was not measured by these scores."""
    gain, forgotten = variant.improvement_on(gain_score), variant.degradation_on(forgetting_score)
    return None if gain is None or forgotten is None else ArmPoint(name, gain, forgotten, None, efficient=False)


def _recommendation_notes(
    baseline: str | None, used_baseline: str, measured_differently: Sequence[str]
) -> Iterator[str]:
    if baseline not in (None, used_baseline):
        yield f"the baseline {baseline!r} has no result yet"
    if measured_differently:
        names = ", ".join(map(repr, measured_differently))
        verb = "uses" if len(measured_differently) == 1 else "use"
        yield f"{names} {verb} other metric options than {used_baseline!r} for the compared scores: excluded"


@dataclass(frozen=True)
class _Experiment:
    """The finished runs of an experiment, and what their comparison needs.

    Attributes:
        arms: Name -> finished run.
        baseline: The arm with which all are compared.
        metrics: Suite -> metric name -> metric.
        seed: Seed of the randomization tests.
    """

    arms: Mapping[str, FinishedRun]
    baseline: str
    metrics: MetricsBySuite
    seed: int

    @cached_property
    def roles(self) -> Mapping[str, Role]:
        """Suite -> role, of the baseline's suites."""
        suites = self.arms[self.baseline].spec["evaluate"]
        return {name: suite["role"] for name, suite in suites.items()}

    def select_axes(self, gain: str | None, forgetting: str | None) -> tuple[str, str]:
        """Return the gain and the forgetting score, with defaults for None."""
        run = self.arms[self.baseline]
        by_role: dict[str, list[str]] = {"domain": [], "general": []}
        for suite, role in self.roles.items():
            last = run.last_evaluation(suite)
            scores = last.scores if last else ()
            by_role[role] += [f"{suite}/{score.name}" for score in scores if score.higher_is_better is not None]
        known = known_forgetting = by_role["domain"] + by_role["general"]
        if is_summary_axis(forgetting):
            summaries = gate_scores_of_run(run.folder)
            known_forgetting = [key for key in summaries if key.partition(":")[0] in FORGETTING_SIGN] or known
        for requested, available in ((gain, known), (forgetting, known_forgetting)):
            if requested is not None and requested not in available:
                what = "the run has no summary" if is_summary_axis(requested) else "no suite has the score"
                raise HarnessError("arms", f"{what} {requested!r}", f"there are: {', '.join(available)}")
        axes = default_axes(by_role, gain, forgetting)
        if axes is None:
            what = "gain and forgetting need one suite of each role, domain and general"
            raise HarnessError("arms", what, "add one to evaluate, or set arms.gain and arms.forgetting")
        return axes

    def compare_all_scores(self) -> tuple[ArmScore, ...]:
        """Compare every score of every arm with the baseline, with p-values adjusted for all comparisons."""
        comparable = [
            (arm, last, score)
            for arm, run in self.arms.items()
            for suite in self.roles
            if (last := run.last_evaluation(suite))
            and (baseline_evaluation := self.arms[self.baseline].last_evaluation(suite))
            for score in last.scores
            if is_comparable(score, last, baseline_evaluation)
        ]
        trials = trials_for_comparisons(sum(arm != self.baseline for arm, _, _ in comparable))
        scores = [self._compare_one_score(arm, (last, score), trials) for arm, last, score in comparable]
        adjusted = holm(
            [math.nan if score.p is None else score.p for score in scores],
            [
                (arm, last.suite, score.metric, self.metrics[last.suite][score.metric].tested_as(score.name))
                for arm, last, score in comparable
            ],
        )
        return tuple(
            score
            if score.against is None
            else replace(score, p_holm=p, verdict=corrected_verdict(score.against, score.higher_is_better, p))
            for score, p in zip(scores, adjusted, strict=True)
        )

    def _compare_one_score(self, arm: str, after: ScoredEvaluation, trials: int) -> ArmScore:
        evaluation, score = after
        suite, metric = evaluation.suite, self.metrics[evaluation.suite][score.metric]
        before = _with_matching_score(self.arms[arm].first_evaluation(suite), score)
        change = _paired_difference(before, after, metric)
        against = None
        if arm != self.baseline:
            baseline = _with_matching_score(self.arms[self.baseline].last_evaluation(suite), score)
            ids, seed = _shared_item_ids(baseline, after), derive_seed(self.seed, "arms", suite)
            against = compare_scores(baseline, after, ids, metric, seed=seed, trials=trials)
        return ArmScore(
            arm=arm,
            suite=suite,
            role=self.roles[suite],
            score=score.name,
            higher_is_better=score.higher_is_better,
            n=change.n,
            before=estimate_of_score(before[1]),
            after=estimate_of_score(score),
            change=change,
            against=None if against is None else against.difference,
            p=None if against is None else against.p,
            p_holm=None,
            verdict=None,
            test=None if against is None else against.test,
        )

    def arm_points(self, gain: str, forgetting: str, methods: Sequence[str], joint: str | None) -> tuple[ArmPoint, ...]:
        """Return gain and forgetting of every arm.

        Args:
            gain: The gain score.
            forgetting: The forgetting score.
            methods: The arms that are methods and were measured as the baseline was. Only they can be efficient.
            joint: The arm on all tasks together.
        """
        gains = {arm: self._improvement(run, gain) for arm, run in self.arms.items()}
        losses = {
            arm: self._forgetting_of_run(run, forgetting, required=arm != joint) for arm, run in self.arms.items()
        }
        efficient = {methods[i] for i in pareto([(gains[arm].value, losses[arm].value) for arm in methods])}
        naive = losses[self.baseline]

        def recovered(arm: str) -> float | None:
            if arm == self.baseline or arm not in (*methods, joint):
                return None
            return fraction_recovered(losses[arm].value, naive.value, naive.stderr)

        return tuple(ArmPoint(arm, gains[arm], losses[arm], recovered(arm), arm in efficient) for arm in self.arms)

    def forgetting_difference(self, run: FinishedRun, other: FinishedRun, axis: str) -> Estimate:
        """Return how much worse the final score is in `other` than in `run`, over the same items."""
        suite, _, name = axis.partition("/")
        first, second = (_with_named_score(each.last_evaluation(suite), name) for each in (run, other))
        assert first is not None  # `arm_points` has found the score in both
        assert second is not None
        metric = self.metrics[suite][first[1].metric]
        gap = _paired_difference(first, second, metric)
        return negated(gap) if first[1].higher_is_better else gap

    def _forgetting_of_run(self, run: FinishedRun, axis: str, *, required: bool) -> Estimate:
        """Return how much a run forgot, positive for a loss; NaN for a missing summary that is not required."""
        if not is_summary_axis(axis):
            return negated(self._improvement(run, axis))
        summary = gate_scores_of_run(run.folder).get(axis)
        if summary is not None:
            return summary.after if FORGETTING_SIGN[axis.partition(":")[0]] > 0 else negated(summary.after)
        if not required:  # a joint arm has all tasks in one stage, so none is earlier than another
            return Estimate(math.nan, math.nan, math.nan, math.nan, 0)
        hint = "add a suite of an earlier stage, or set arms.forgetting to another score"
        raise HarnessError(str(run.folder), f"the run has no summary {axis!r}", hint)

    def _improvement(self, run: FinishedRun, axis: str) -> Estimate:
        """Return the change of a score relative to the base model, positive if better."""
        suite, _, name = axis.partition("/")
        last = _with_named_score(run.last_evaluation(suite), name)
        if last is None:
            hint = "set arms.gain and arms.forgetting to scores of every arm"
            raise HarnessError(str(run.folder), f"the run has no score {axis!r}", hint)
        score = last[1]
        first = _with_matching_score(run.first_evaluation(suite), score)
        metric = self.metrics[suite][score.metric]
        change = _paired_difference(first, last, metric)
        return change if score.higher_is_better else negated(change)


def _paired_difference(first: ScoredEvaluation, second: ScoredEvaluation, metric: Metric) -> Estimate:
    """Return second − first over the items that both have."""
    return score_difference(first, second, metric, _shared_item_ids(first, second)).difference


def _shared_item_ids(first: ScoredEvaluation, second: ScoredEvaluation) -> tuple[str, ...]:
    ids = align_items(first[0], second[0]).ids
    if not ids:
        what = f"two arms have no common item in {first[0].suite!r}"
        raise HarnessError("arms", what, "use the same held-out rows in both")
    return ids


def _with_named_score(evaluation: Evaluation | None, name: str) -> ScoredEvaluation | None:
    scores = evaluation.scores if evaluation is not None else ()
    score = next((score for score in scores if score.name == name), None)
    return None if evaluation is None or score is None else (evaluation, score)


def _with_matching_score(evaluation: Evaluation | None, reference: Score) -> ScoredEvaluation:
    score = None if evaluation is None else evaluation.matching_score(reference)
    if evaluation is None or score is None:
        what = f"an arm has no score {reference.name!r} of {reference.suite!r}"
        raise HarnessError("arms", what, "use the same metrics in all arms")
    require_same_signature(evaluation.suite, score, reference)
    return evaluation, score
