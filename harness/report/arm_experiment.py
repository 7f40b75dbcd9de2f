"""The finished runs of an experiment: the scores of its arms, pooled over seeds and paired by seed and item."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from harness.errors import HarnessError
from harness.gate import ScoreForGate
from harness.interfaces.metric import Metric
from harness.report.arm_score import ArmScore
from harness.report.finished_run import FinishedRun
from harness.report.linearized_scores import linearize_score, linearize_summary
from harness.report.not_comparable import is_comparable
from harness.report.paired_difference import (
    ScoredEvaluation,
    align_items,
    compare_scores,
    corrected_verdict,
    named_score,
    require_same_signature,
    score_difference,
    trials_for_comparisons,
)
from harness.report.recommendation import ArmPoint
from harness.report.run_report import gate_scores_of_run
from harness.report.score_change import estimate_of_score
from harness.report.weight_variants import negated
from harness.seeding import derive_seed
from harness.spec.arms import FORGETTING_SIGN, is_summary_axis
from harness.spec.primary_score import ScoredSuite, default_axes
from harness.statistics.forgetting import fraction_recovered, pareto
from harness.statistics.intervals import Estimate
from harness.statistics.item_statistics import score_function
from harness.statistics.seeds import Linearized, PooledEstimate, combine, linearize, pool_over_seeds, widen
from harness.statistics.significance import holm
from harness.types import Evaluation, Role, Score

MetricsBySuite = Mapping[str, Mapping[str, Metric]]

POOLED_TEST = "t over seeds and items"
NOT_COMPARABLE = Estimate(math.nan, math.nan, math.nan, math.nan, 0)


@dataclass(frozen=True)
class ArmExperiment:
    """The finished runs of an experiment, and what their comparison needs.

    Attributes:
        arms: Arm -> seed -> finished run; every arm has at least one.
        baseline: The arm with which all are compared.
        metrics: Suite -> metric name -> metric.
        seed: Seed of the randomization tests.
    """

    arms: Mapping[str, Mapping[int, FinishedRun]]
    baseline: str
    metrics: MetricsBySuite
    seed: int
    _cache: dict[Any, Linearized | None] = field(default_factory=dict, repr=False, compare=False)

    @cached_property
    def roles(self) -> Mapping[str, Role]:
        """Suite -> role, of the baseline's suites."""
        suites = self.first_run(self.baseline).spec["evaluate"]
        return {name: suite["role"] for name, suite in suites.items()}

    def first_run(self, arm: str) -> FinishedRun:
        """Return the arm's run with its first seed."""
        return next(iter(self.arms[arm].values()))

    def shared_seeds(self, arm: str, other: str) -> tuple[int, ...]:
        """Return the seeds with which both arms have a result."""
        return tuple(seed for seed in self.arms[arm] if seed in self.arms[other])

    def select_axes(self, gain: str | None, forgetting: str | None) -> tuple[str, str]:
        """Return the gain and the forgetting score, with defaults for None."""
        run = self.first_run(self.baseline)
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
        axes = default_axes(self._scored_suites(), gain, forgetting)
        if axes is None:
            what = "gain and forgetting need one suite of each role, domain and general"
            raise HarnessError("arms", what, "add one to evaluate, or set arms.gain and arms.forgetting")
        return axes

    @cached_property
    def primary_scores(self) -> Mapping[str, str]:
        """Suite -> its primary score in the baseline, as `suite/score`."""
        return {suite.name: suite.primary_score for suite in self._scored_suites() if suite.primary_score is not None}

    def _scored_suites(self) -> list[ScoredSuite]:
        """Return the suites that the baseline evaluated, with the metrics of their scores."""
        run = self.first_run(self.baseline)
        return [
            ScoredSuite(
                suite,
                role,
                run.spec["evaluate"][suite].get("primary"),
                {score.metric: self.metrics[suite][score.metric] for score in last.scores},
            )
            for suite, role in self.roles.items()
            if (last := run.last_evaluation(suite)) is not None
        ]

    def default_margin(self, axis: str) -> float:
        """Return the margin of a score: the suite's own for its primary score, else the metric's.

        A summary has the margin of its score in the first suite with it.
        """
        run = self.first_run(self.baseline)
        suite, _, name = axis.partition("/")
        if is_summary_axis(axis):
            name = axis.partition(":")[2].rpartition(".")[2]
            if axis.startswith("relative_forgetting"):
                return 2.0  # percent
        for each in self.roles if is_summary_axis(axis) else (suite,):
            scored = named_score(run.first_evaluation(each), name)
            if scored is not None:
                score = scored[1]
                margin = run.spec["evaluate"][each].get("margin")
                if margin and f"{each}/{name}" == self.primary_scores.get(each):
                    return float(margin)
                return self.metrics[each][score.metric].default_margin(name, score.value)
        raise HarnessError(
            "arms", f"no suite has the score {axis!r}", "set arms.gain_margin and arms.forgetting_margin"
        )

    # -- every score ---------------------------------------------------------------------------------------------------

    def compare_all_scores(self) -> tuple[ArmScore, ...]:
        """Compare every score of every arm with the baseline, with p-values adjusted for all comparisons."""
        comparable = [
            (arm, suite, score, seeds)
            for arm in self.arms
            for suite in self.roles
            if (last := self.first_run(arm).last_evaluation(suite))
            for score in last.scores
            if (seeds := self._comparable_seeds(arm, suite, score))
        ]
        trials = trials_for_comparisons(sum(arm != self.baseline for arm, *_ in comparable))
        scores = [self._compare_one_score(*each, trials) for each in comparable]
        adjusted = holm(
            [math.nan if score.p is None else score.p for score in scores],
            [score.hypothesis for score in scores],
        )
        return tuple(
            score
            if score.against is None
            else replace(score, p_holm=p, verdict=corrected_verdict(score.against, score.higher_is_better, p))
            for score, p in zip(scores, adjusted, strict=True)
        )

    def _comparable_seeds(self, arm: str, suite: str, score: Score) -> tuple[int, ...]:
        """Return the seeds with which a score of an arm can be compared with the baseline's."""
        seeds = []
        for seed in self.shared_seeds(arm, self.baseline):
            last, baseline = (self.arms[each][seed].last_evaluation(suite) for each in (arm, self.baseline))
            own = None if last is None else last.matching_score(score)
            if last is not None and baseline is not None and own is not None and is_comparable(own, last, baseline):
                seeds.append(seed)
        return tuple(seeds)

    def _compare_one_score(self, arm: str, suite: str, score: Score, seeds: Sequence[int], trials: int) -> ArmScore:
        metric = self.metrics[suite][score.metric]
        before = [_with_matching_score(self.arms[arm][seed].first_evaluation(suite), score) for seed in seeds]
        after = [_with_matching_score(self.arms[arm][seed].last_evaluation(suite), score) for seed in seeds]
        pooled_after = self._pooled_level(after, metric)
        result = ArmScore(
            arm=arm,
            suite=suite,
            role=self.roles[suite],
            score=score.name,
            higher_is_better=score.higher_is_better,
            n=0,
            before=self._pooled_level(before, metric).estimate,
            after=pooled_after.estimate,
            change=self._pooled_difference(before, after, metric).estimate,
            against=None,
            p=None,
            p_holm=None,
            verdict=None,
            seeds=len(seeds),
            after_spread=pooled_after.spread,
            tested_as=metric.tested_as(score.name),
        )
        result = replace(result, n=result.change.n)
        if arm == self.baseline:
            return result
        baseline = [
            _with_matching_score(self.arms[self.baseline][seed].last_evaluation(suite), score) for seed in seeds
        ]
        if len(seeds) > 1:
            pooled = self._pooled_difference(baseline, after, metric)
            return replace(result, against=pooled.estimate, p=pooled.p, test=POOLED_TEST)
        ids, draw_seed = _shared_item_ids(baseline[0], after[0]), derive_seed(self.seed, "arms", suite)
        against = compare_scores(baseline[0], after[0], ids, metric, seed=draw_seed, trials=trials)
        return replace(result, against=against.difference, p=against.p, test=against.test)

    # -- gain and forgetting -------------------------------------------------------------------------------------------

    def arm_points(self, gain: str, forgetting: str, methods: Sequence[str], joint: str | None) -> tuple[ArmPoint, ...]:
        """Return gain and forgetting of every arm.

        Args:
            gain: The gain score.
            forgetting: The forgetting score.
            methods: The arms that are methods and were measured as the baseline was. Only they can be efficient.
            joint: The arm on all tasks together.
        """
        gains = {arm: self._improvement(arm, gain) for arm in self.arms}
        losses = {arm: self._forgetting(arm, forgetting, required=arm != joint) for arm in self.arms}
        values = [(gains[arm].estimate.value, losses[arm].estimate.value) for arm in methods]
        efficient = {methods[index] for index in pareto(values)}

        def recovered(arm: str) -> float | None:
            seeds = self.shared_seeds(arm, self.baseline)
            if arm == self.baseline or arm not in (*methods, joint) or not seeds:
                return None
            own, naive = losses[arm].estimate, losses[self.baseline].estimate
            if len(seeds) != len(self.arms[arm]) or len(seeds) != len(self.arms[self.baseline]):
                own = self._forgetting(arm, forgetting, seeds=seeds).estimate
                naive = self._forgetting(self.baseline, forgetting, seeds=seeds).estimate
            return fraction_recovered(own.value, naive.value, naive.stderr)

        return tuple(
            ArmPoint(
                arm,
                gains[arm].estimate,
                losses[arm].estimate,
                recovered(arm),
                arm in efficient,
                tuple(self.arms[arm]),
                gains[arm].spread,
                losses[arm].spread,
            )
            for arm in self.arms
        )

    def gain_difference(self, arm: str, other: str, axis: str, comparisons: int = 1) -> Estimate:
        """Return how much more an arm gains than another, over the same items and seeds.

        Args:
            arm: An arm.
            other: Another arm.
            axis: The gain score.
            comparisons: Number of comparisons for which the interval holds together (Bonferroni).

        Returns:
            The difference; NaN if the arms share no seed or items.
        """
        suite, _, name = axis.partition("/")
        seeds = self.shared_seeds(arm, other)
        first = [named_score(self.arms[other][seed].last_evaluation(suite), name) for seed in seeds]
        second = [named_score(self.arms[arm][seed].last_evaluation(suite), name) for seed in seeds]
        pairs = [(a, b) for a, b in zip(first, second, strict=True) if a and b and align_items(a[0], b[0]).ids]
        if not pairs:
            return NOT_COMPARABLE
        metric = self.metrics[suite][pairs[0][0][1].metric]
        before, after = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
        gap = self._pooled_difference(before, after, metric, comparisons).estimate
        return gap if pairs[0][0][1].higher_is_better else negated(gap)

    def forgetting_difference(self, arm: str, other: str, axis: str, comparisons: int = 1) -> Estimate:
        """Return how much more an arm forgets than another, over the same items and seeds; see `gain_difference`."""
        if not is_summary_axis(axis):
            return negated(self.gain_difference(arm, other, axis, comparisons))
        gaps = []
        for seed in self.shared_seeds(arm, other):
            first, second = (self._linearized_summary(each, seed, axis) for each in (other, arm))
            if first is not None and second is not None:
                gaps.append(combine([(-1.0, first), (1.0, second)]))
        if not gaps:
            return NOT_COMPARABLE
        gap = pool_over_seeds(gaps, comparisons=comparisons).estimate
        return gap if FORGETTING_SIGN[axis.partition(":")[0]] > 0 else negated(gap)

    def _forgetting(
        self, arm: str, axis: str, *, seeds: Sequence[int] | None = None, required: bool = True
    ) -> PooledEstimate:
        """Return how much an arm forgot, positive for a loss; NaN for a missing summary that is not required."""
        if not is_summary_axis(axis):
            return _negated_pool(self._improvement(arm, axis, seeds))
        runs = {seed: run for seed, run in self.arms[arm].items() if seeds is None or seed in seeds}
        sign = FORGETTING_SIGN[axis.partition(":")[0]]
        summaries = [gate_scores_of_run(run.folder).get(axis) for run in runs.values()]
        if None in summaries:
            if not required:  # a joint arm has all tasks in one stage, so none is earlier than another
                return PooledEstimate(NOT_COMPARABLE, math.nan, None)
            hint = "add a suite of an earlier stage, or set arms.forgetting to another score"
            folder = next(iter(runs.values())).folder
            raise HarnessError(str(folder), f"the run has no summary {axis!r}", hint)
        if len(summaries) == 1 and summaries[0] is not None:
            pooled = PooledEstimate(summaries[0].after, math.nan, None)
        else:
            linearized = [self._linearized_summary(arm, seed, axis) for seed in runs]
            pooled = pool_over_seeds([each for each in linearized if each is not None])
        return pooled if sign > 0 else _negated_pool(pooled)

    def _improvement(self, arm: str, axis: str, seeds: Sequence[int] | None = None) -> PooledEstimate:
        """Return the change of a score relative to the base model, positive if better."""
        suite, _, name = axis.partition("/")
        first, last = [], []
        for seed, run in self.arms[arm].items():
            if seeds is not None and seed not in seeds:
                continue
            after = named_score(run.last_evaluation(suite), name)
            if after is None:
                hint = "set arms.gain and arms.forgetting to scores of every arm"
                raise HarnessError(str(run.folder), f"the run has no score {axis!r}", hint)
            first.append(_with_matching_score(run.first_evaluation(suite), after[1]))
            last.append(after)
        metric = self.metrics[suite][last[0][1].metric]
        change = self._pooled_difference(first, last, metric)
        return change if last[0][1].higher_is_better else _negated_pool(change)

    # -- the gate ------------------------------------------------------------------------------------------------------

    def gate_scores(self, arm: str, comparisons: int) -> dict[str, ScoreForGate]:
        """Return the scores of an arm for a gate, pooled over its seeds.

        Args:
            arm: The arm.
            comparisons: Number of arms among which this one was chosen; the intervals hold for all of them together.
        """
        runs = self.arms[arm]
        scores = gate_scores_of_run(self.first_run(arm).folder)
        if len(runs) == 1:
            return {
                key: replace(
                    score,
                    after=widen(score.after, comparisons),
                    difference=None if score.difference is None else widen(score.difference, comparisons),
                )
                for key, score in scores.items()
            }
        return {
            key: pooled
            for key, score in scores.items()
            if (pooled := self._pooled_gate_score(arm, key, score, comparisons)) is not None
        }

    def _pooled_gate_score(self, arm: str, key: str, score: ScoreForGate, comparisons: int) -> ScoreForGate | None:
        """Return a score or summary over all seeds of an arm; None if a seed does not have it."""
        if is_summary_axis(key):
            linearized = [self._linearized_summary(arm, seed, key) for seed in self.arms[arm]]
            present = [each for each in linearized if each is not None]
            if len(present) < len(linearized):
                return None
            return replace(score, after=pool_over_seeds(present, comparisons=comparisons).estimate)
        suite, _, name = key.partition("/")
        first = [named_score(run.first_evaluation(suite), name) for run in self.arms[arm].values()]
        last = [named_score(run.last_evaluation(suite), name) for run in self.arms[arm].values()]
        before, after = [each for each in first if each], [each for each in last if each]
        if len(before) < len(first) or len(after) < len(last):
            return None
        metric = self.metrics[suite][after[0][1].metric]
        change = self._pooled_difference(before, after, metric, comparisons).estimate
        return replace(score, after=self._pooled_level(after, metric, comparisons).estimate, difference=change)

    # -- pooling -------------------------------------------------------------------------------------------------------

    def _pooled_level(self, scored: Sequence[ScoredEvaluation], metric: Metric, comparisons: int = 1) -> PooledEstimate:
        if len(scored) == 1:
            return PooledEstimate(widen(estimate_of_score(scored[0][1]), comparisons), math.nan, None)
        levels = [
            linearize(
                score.statistics,
                score_function(metric, score.name),
                _numbered([item.id for item in evaluation.items]),
            )
            for evaluation, score in scored
        ]
        return pool_over_seeds(levels, comparisons=comparisons)

    def _pooled_difference(
        self,
        first: Sequence[ScoredEvaluation],
        second: Sequence[ScoredEvaluation],
        metric: Metric,
        comparisons: int = 1,
    ) -> PooledEstimate:
        """Return second − first over the items that both have, seed by seed.

        Args:
            first: An evaluation of each seed and its score.
            second: The same of another arm or stage, in the order of the seeds.
            metric: The metric of the score.
            comparisons: Number of comparisons for which the interval holds together.
        """
        all_ids = [_shared_item_ids(*pair) for pair in zip(first, second, strict=True)]
        if len(first) == 1:
            single = score_difference(first[0], second[0], metric, all_ids[0])
            return PooledEstimate(widen(single.difference, comparisons), single.p, None)
        gaps = [
            combine([(-1.0, linearize_score(before, ids, metric)), (1.0, linearize_score(after, ids, metric))])
            for before, after, ids in zip(first, second, all_ids, strict=True)
        ]
        return pool_over_seeds(gaps, comparisons=comparisons)

    def _linearized_summary(self, arm: str, seed: int, axis: str) -> Linearized | None:
        key = (arm, seed, axis)
        if key not in self._cache:
            self._cache[key] = linearize_summary(self.arms[arm][seed], axis, self.metrics)
        return self._cache[key]


def _numbered(ids: Sequence[str]) -> list[tuple[str, int]]:
    """Return the ids such that they are different, also those of items with equal content."""
    seen: dict[str, int] = {}
    keys = []
    for item_id in ids:
        seen[item_id] = seen.get(item_id, 0) + 1
        keys.append((item_id, seen[item_id]))
    return keys


def _negated_pool(pooled: PooledEstimate) -> PooledEstimate:
    spread = pooled.spread
    if spread is not None:
        spread = replace(
            spread,
            values=tuple(-value for value in spread.values),
            over_seeds=negated(spread.over_seeds),
            over_items=negated(spread.over_items),
        )
    return PooledEstimate(negated(pooled.estimate), pooled.p, spread)


def _shared_item_ids(first: ScoredEvaluation, second: ScoredEvaluation) -> tuple[str, ...]:
    ids = align_items(first[0], second[0]).ids
    if not ids:
        what = f"two arms have no common item in {first[0].suite!r}"
        raise HarnessError("arms", what, "use the same held-out rows in both")
    return ids


def _with_matching_score(evaluation: Evaluation | None, reference: Score) -> ScoredEvaluation:
    score = None if evaluation is None else evaluation.matching_score(reference)
    if evaluation is None or score is None:
        what = f"an arm has no score {reference.name!r} of {reference.suite!r}"
        raise HarnessError("arms", what, "use the same metrics in all arms")
    require_same_signature(evaluation.suite, score, reference)
    return evaluation, score
