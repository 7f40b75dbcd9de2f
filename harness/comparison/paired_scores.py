"""Compare each run with the baseline, score by score, over the items that both were evaluated on."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from harness.comparison.run_summary import LoadedRun
from harness.errors import HarnessError
from harness.interfaces.metric import Metric
from harness.registry import Registry
from harness.report.finished_run import FinishedRun
from harness.report.paired_difference import (
    align_items,
    compare_scores,
    corrected_verdict,
    require_same_signature,
    trials_for_comparisons,
)
from harness.report.score_change import Verdict, items_needed_for_verdict
from harness.seeding import derive_seed
from harness.spec.metric_factory import create_metric
from harness.spec.primary_score import ScoredSuite
from harness.statistics.intervals import Estimate
from harness.statistics.item_statistics import score_function, score_of
from harness.statistics.significance import holm
from harness.types import MIN_ITEMS, Evaluation, Role, Score

COMPARISON_SEED = 0
"""Seed of the draws of every comparison, whatever the seeds of the runs."""


@dataclass(frozen=True)
class PairedScore:
    """One score of one run compared with the baseline's.

    Attributes:
        run: Index of the run.
        n: Number of items that both were evaluated on.
        dropped: Reason why items were left out -> number of items.
        first: The baseline's score over these items.
        second: The run's score over these items.
        difference: second − first, with its 95 % interval.
        test: The significance test.
        tested_as: The score that is tested: the NLL for a perplexity, else the score itself.
        p: Its p-value for "no difference".
        p_holm: The p-value after Holm's correction for every hypothesis of the comparison. A perplexity and its NLL are
            one hypothesis.
        verdict: `better` or `worse` if there are at least 30 items, the interval excludes 0 and p_holm is below 5 %;
            `different` under the same conditions for a score where neither direction is better; else
            `too few items` or `no evidence`.
        needed: Without a verdict: how many items (groups, if the suite has groups) would give one with 80 %
            probability if the true difference is as large as the estimate; None if the estimate is 0.
    """

    run: int
    suite: str
    role: Role
    metric: str
    score: str
    signature: str
    higher_is_better: bool | None
    n: int
    dropped: Mapping[str, int]
    first: Estimate
    second: Estimate
    difference: Estimate
    test: str
    p: float
    p_holm: float
    verdict: Verdict
    needed: int | None
    tested_as: str

    @property
    def hypothesis(self) -> tuple[int, str, str, str]:
        """What is tested; equal for a perplexity and its NLL."""
        return self.run, self.suite, self.metric, self.tested_as


def count_hypotheses(pairs: Sequence[PairedScore]) -> int:
    """Return the number of different hypotheses that are tested."""
    return len({pair.hypothesis for pair in pairs if not math.isnan(pair.p)})


@dataclass(frozen=True)
class NotComparable:
    """A part of a run that could not be compared.

    Attributes:
        run: Index of the run.
        suite: The suite; empty for the complete run.
        score: The score; empty for the complete suite or run.
        why: The reason.
    """

    run: int
    suite: str
    score: str
    why: str


class PairwiseComparer:
    """Compares runs with the baseline; creates each metric of the baseline's spec once.

    Args:
        loaded_runs: The runs.
        baseline: Index of the baseline.
        registry: The plugins, for the metrics.

    Attributes:
        not_comparable: What `compare_all` could not compare.
    """

    def __init__(self, loaded_runs: Sequence[LoadedRun], baseline: int, registry: Registry) -> None:
        self.loaded_runs, self.baseline, self._registry = loaded_runs, baseline, registry
        self.not_comparable: list[NotComparable] = []
        self._metrics: dict[tuple[str, str], Metric | HarnessError] = {}

    def compare_all(self) -> tuple[PairedScore, ...]:
        """Compare every score that a run shares with the baseline; add the rest to `not_comparable`."""
        baseline_run = self._comparable_run(self.baseline)
        other_runs = [index for index in range(len(self.loaded_runs)) if index != self.baseline]
        shared = [
            entry for index in other_runs if baseline_run for entry in self._iter_shared_scores(index, baseline_run)
        ]
        trials = trials_for_comparisons(len(shared))
        pairs = [pair for run, suite, score in shared if (pair := self._compare_score(run, suite, score, trials))]
        adjusted = holm([pair.p for pair in pairs], [pair.hypothesis for pair in pairs])
        comparisons = count_hypotheses(pairs)
        return tuple(_with_verdict(pair, p, comparisons) for pair, p in zip(pairs, adjusted, strict=True))

    def last_evaluation(self, run_index: int, suite: str) -> Evaluation:
        """Return the evaluation of a suite after the last stage of a run that was compared."""
        finished_run = self.loaded_runs[run_index].finished_run
        evaluation = None if finished_run is None else finished_run.last_evaluation(suite)
        assert evaluation is not None
        return evaluation

    def primary_scores(self) -> dict[str, str]:
        """Return suite -> its primary score in the baseline, as `suite/score`; suites without one are missing."""
        run = self.loaded_runs[self.baseline].finished_run
        suites = {} if run is None else run.spec.get("evaluate", {})
        primary = {}
        for suite, settings in suites.items():
            last = None if run is None else run.last_evaluation(suite)
            metrics = {}
            for score in () if last is None else last.scores:
                with contextlib.suppress(HarnessError):  # of a plugin that is not installed
                    metrics[score.metric] = self.get_metric(suite, score)
            role = settings.get("role", "domain")
            score_name = ScoredSuite(suite, role, settings.get("primary"), metrics).primary_score
            if score_name is not None:
                primary[suite] = score_name
        return primary

    def get_metric(self, suite: str, score: Score) -> Metric:
        """Return the metric of a score of the baseline.

        Raises:
            HarnessError: If the metric is not installed, or does not reproduce the score.
        """
        key = (suite, score.metric)
        if key not in self._metrics:
            try:
                self._metrics[key] = self._create_metric(suite, score.metric)
            except HarnessError as error:
                self._metrics[key] = error
        metric = self._metrics[key]
        if isinstance(metric, HarnessError):
            raise metric
        _require_same_value(metric, score)
        return metric

    def _create_metric(self, suite: str, name: str) -> Metric:
        settings = self._suite_settings(suite)
        # A metric added by `harness score` is not in the spec: its defaults must then reproduce the numbers.
        options = settings.get("metrics", {}).get(name, {})
        return create_metric(self._registry, name, options, lang=settings.get("lang", "auto"))

    def _suite_settings(self, suite: str) -> Mapping[str, Any]:
        finished_run = self.loaded_runs[self.baseline].finished_run
        assert finished_run is not None
        settings: Mapping[str, Any] = finished_run.spec.get("evaluate", {}).get(suite, {})
        return settings

    def _comparable_run(self, run_index: int) -> FinishedRun | None:
        """Return the scores of a run that is finished; otherwise add the reason to `not_comparable`."""
        loaded_run = self.loaded_runs[run_index]
        reason = loaded_run.summary.why
        if not loaded_run.is_finished:
            reason = "the run is not finished"
        elif loaded_run.finished_run is None and not reason:
            reason = "the scores of its items are not available"
        if reason or loaded_run.finished_run is None:
            self._add_not_comparable(run_index, "", "", reason)
            return None
        return loaded_run.finished_run

    def _iter_shared_scores(self, run_index: int, baseline_run: FinishedRun) -> Iterator[tuple[int, str, Score]]:
        """Yield (index of the run, suite, the baseline's score) of every score that both have."""
        other_run = self._comparable_run(run_index)
        if other_run is None:
            return
        for suite in dict.fromkeys(
            evaluation.suite for run in (baseline_run, other_run) for stage in run.evaluations for evaluation in stage
        ):
            first, second = baseline_run.last_evaluation(suite), other_run.last_evaluation(suite)
            if first is None or second is None:
                reason = self._missing_reason(run_index, "suite", in_baseline=first is None)
                self._add_not_comparable(run_index, suite, "", reason)
                continue
            if not align_items(first, second).ids:
                self._add_not_comparable(run_index, suite, "", "the two runs share no item of this suite")
                continue
            self._add_unshared_scores(run_index, first, second)
            yield from ((run_index, suite, score) for score in first.scores if second.matching_score(score) is not None)

    def _add_not_comparable(self, run_index: int, suite: str, score: str, reason: str) -> None:
        self.not_comparable.append(NotComparable(run_index, suite, score, reason))

    def _add_unshared_scores(self, run_index: int, first: Evaluation, second: Evaluation) -> None:
        """Add the scores of a suite that one of the two lacks or computes with another metric."""
        metric_by_score = [{score.name: score.metric for score in each.scores} for each in (first, second)]
        for score in dict.fromkeys([*metric_by_score[0], *metric_by_score[1]]):
            metrics = [side.get(score) for side in metric_by_score]
            if None in metrics:
                reason = self._missing_reason(run_index, "score", in_baseline=metrics[0] is None)
                self._add_not_comparable(run_index, first.suite, score, reason)
            elif metrics[0] != metrics[1]:
                reason = f"computed by different metrics: {metrics[0]} and {metrics[1]}"
                self._add_not_comparable(run_index, first.suite, score, reason)

    def _missing_reason(self, run_index: int, what: str, *, in_baseline: bool) -> str:
        other = run_index if in_baseline else self.baseline
        return f"only {self.loaded_runs[other].summary.name} has this {what}"

    def _compare_score(self, run_index: int, suite: str, score: Score, trials: int) -> PairedScore | None:
        """Compare one score; None, with the reason in `not_comparable`, if that is not possible."""
        names = (self.loaded_runs[self.baseline].summary.name, self.loaded_runs[run_index].summary.name)
        first, second = self.last_evaluation(self.baseline, suite), self.last_evaluation(run_index, suite)
        other_score = second.matching_score(score)
        assert other_score is not None
        try:
            _require_usable(score, other_score)
            require_same_signature(suite, score, other_score)
            metric = self.get_metric(suite, score)
            _require_same_value(metric, other_score)
            aligned = align_items(first, second, names)
            seed = derive_seed(COMPARISON_SEED, "compare", suite)
            paired = compare_scores(
                (first, score), (second, other_score), aligned.ids, metric, seed=seed, trials=trials
            )
        except HarnessError as error:
            reason = error.what if error.where == "compare" else f"{error.where}: {error.what}"
            self._add_not_comparable(run_index, suite, score.name, reason)
            return None
        return PairedScore(
            run=run_index,
            suite=suite,
            role=self._suite_settings(suite).get("role", "domain"),
            metric=score.metric,
            score=score.name,
            signature=score.signature,
            higher_is_better=score.higher_is_better,
            n=paired.n,
            dropped=aligned.dropped,
            first=paired.first,
            second=paired.second,
            difference=paired.difference,
            test=paired.test,
            p=paired.p,
            p_holm=math.nan,
            verdict="no evidence",
            needed=None,
            tested_as=metric.tested_as(score.name),
        )


def _with_verdict(pair: PairedScore, p_holm: float, comparisons: int) -> PairedScore:
    verdict = corrected_verdict(pair.difference, pair.higher_is_better, p_holm)
    needed = None
    if verdict in ("no evidence", "too few items"):
        needed = items_needed_for_verdict(pair.difference, comparisons)
        if needed is not None and pair.difference.units >= MIN_ITEMS:
            needed = max(needed, pair.difference.units + 1)  # n items have just been shown to give no verdict
    return replace(pair, p_holm=p_holm, verdict=verdict, needed=needed)


def _require_usable(*scores: Score) -> None:
    """Raise HarnessError if a score is not to be used."""
    for score in scores:
        if score.unusable:
            raise HarnessError("compare", f"UNUSABLE: {score.unusable}")


def _require_same_value(metric: Metric, score: Score) -> None:
    """Require that the installed metric reproduces the score that the run stored.

    Raises:
        HarnessError: If it cannot read the statistics of the score, or computes another value from them.
    """
    if not score.statistics or score.name not in metric.score_names:
        what = f"the run has no statistics of {score.name} that the installed metric {score.metric!r} can read"
        raise HarnessError("compare", what)
    try:
        value = score_of(score_function(metric, score.name), np.asarray(score.statistics, dtype=np.float64))
    except (ValueError, TypeError, IndexError) as error:
        what = (
            f"the installed metric {score.metric!r} cannot read the stored statistics ({type(error).__name__}: {error})"
        )
        raise HarnessError("compare", what) from error
    if math.isfinite(score.value) and not math.isclose(value, score.value, rel_tol=1e-6, abs_tol=1e-9):
        what = f"the installed metric {score.metric!r} computes {value:.6g}, but the run stored {score.value:.6g}"
        raise HarnessError("compare", what)
