"""Each run against the baseline, score by score, over the items that both were measured on.

Knows runs with their files, and the metrics of their specs; not how a comparison is shown.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from harness.comparison.run_summary import LoadedRun
from harness.errors import HarnessError
from harness.interfaces.metric import Metric
from harness.registry import Registry
from harness.report.finished_run import FinishedRun
from harness.report.paired_difference import (
    SIGNIFICANCE_LEVEL,
    align_items,
    compare_scores,
    corrected_verdict,
    require_same_signature,
    trials_for_comparisons,
)
from harness.report.run_report import MIN_ITEMS, Verdict, items_needed_for_verdict
from harness.seeding import derive_seed
from harness.spec.metric_factory import create_metric
from harness.statistics.intervals import Estimate
from harness.statistics.significance import holm
from harness.types import Evaluation, Role, Score

PairVerdict = Verdict | Literal["different"]

COMPARISON_SEED = 0
"""Of the draws of every comparison: runs of different seeds are compared by the same draws."""


@dataclass(frozen=True)
class PairedScore:
    """One score of one run against the baseline's. run: its index among the runs.

    n: items that both were measured on; dropped: why others were left out -> how many. first: the baseline over these
    items, second: the run; difference: second − first, with its 95 % interval. p: of "no difference", by `test`;
    p_holm: adjusted for every pair of the comparison.
    verdict: `better` or `worse` when the interval leaves 0 out and p_holm is below 5 %, over at least 30 items;
    `different` likewise, of a score where neither direction is better; else `too few items` or `no evidence`.
    needed: then about how many items would give a verdict, if the difference is as large as it looks; None where it
    looks like none at all.
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
    verdict: PairVerdict
    needed: int | None


@dataclass(frozen=True)
class NotComparable:
    """What of a run could not be compared, and why. suite, score: empty where it is the whole run, or whole suite."""

    run: int
    suite: str
    score: str
    why: str


class PairwiseComparer:
    """The runs beside each other: what they share, and the metrics to measure it with."""

    def __init__(self, loaded_runs: Sequence[LoadedRun], baseline: int, registry: Registry) -> None:
        self.loaded_runs, self.baseline, self._registry = loaded_runs, baseline, registry
        self.not_comparable: list[NotComparable] = []
        self._metrics: dict[tuple[str, str], Metric | HarnessError] = {}

    def compare_all(self) -> tuple[PairedScore, ...]:
        """Every score that a run shares with the baseline; what cannot be compared is in `not_comparable`."""
        base = self._comparable_run(self.baseline)
        others = [number for number in range(len(self.loaded_runs)) if number != self.baseline]
        shared = [one for number in others if base for one in self._iter_shared_scores(number, base)]
        trials = trials_for_comparisons(len(shared))
        made = [pair for number, suite, score in shared if (pair := self._compare_score(number, suite, score, trials))]
        adjusted = holm([one.p for one in made])
        return tuple(_with_verdict(one, p, len(made)) for one, p in zip(made, adjusted, strict=True))

    def last_evaluation(self, run_index: int, suite: str) -> Evaluation:
        """The suite after the last stage of a run that has been compared."""
        read = self.loaded_runs[run_index].finished_run
        last = None if read is None else read.last_evaluation(suite)
        assert last is not None
        return last

    def get_metric(self, suite: str, score: Score) -> Metric:
        """The metric of a score of the baseline. Raises HarnessError when it cannot be had, or gives other numbers."""
        key = (suite, score.metric)
        if key not in self._metrics:
            try:
                self._metrics[key] = self._create_metric(suite, score.metric)
            except HarnessError as error:
                self._metrics[key] = error
        found = self._metrics[key]
        if isinstance(found, HarnessError):
            raise found
        _require_same_value(found, score)
        return found

    def _create_metric(self, suite: str, name: str) -> Metric:
        given = self._suite_settings(suite)
        options = given.get("metrics", {})
        # A metric that was added by `harness score` stands in no spec: its defaults must then give the same numbers.
        return create_metric(self._registry, name, options.get(name, {}), lang=given.get("lang", "auto"))

    def _suite_settings(self, suite: str) -> Mapping[str, Any]:
        read = self.loaded_runs[self.baseline].finished_run
        assert read is not None
        given: Mapping[str, Any] = read.spec.get("evaluate", {}).get(suite, {})
        return given

    def _comparable_run(self, run_index: int) -> FinishedRun | None:
        """The kept scores of a run that came to its end; else None, and why is said."""
        one = self.loaded_runs[run_index]
        why = one.summary.why
        if not one.is_finished:
            why = "the run has not come to its end"
        elif one.finished_run is None and not why:
            why = "the scores of its items cannot be had"
        if why or one.finished_run is None:
            self.not_comparable.append(NotComparable(run_index, "", "", why))
            return None
        return one.finished_run

    def _iter_shared_scores(self, run_index: int, baseline_run: FinishedRun) -> Iterator[tuple[int, str, Score]]:
        other = self._comparable_run(run_index)
        if other is None:
            return
        for suite in dict.fromkeys(
            one.suite for read in (baseline_run, other) for stage in read.evaluations for one in stage
        ):
            first, second = baseline_run.last_evaluation(suite), other.last_evaluation(suite)
            if first is None or second is None:
                self._add_not_comparable(
                    run_index, suite, "", self._missing_reason(run_index, "suite", in_baseline=first is None)
                )
                continue
            if not align_items(first, second).ids:
                self._add_not_comparable(run_index, suite, "", "the two share no item of it")
                continue
            self._add_unshared_scores(run_index, first, second)
            yield from ((run_index, suite, one) for one in first.scores if second.matching_score(one) is not None)

    def _add_not_comparable(self, run_index: int, suite: str, score: str, why: str) -> None:
        self.not_comparable.append(NotComparable(run_index, suite, score, why))

    def _add_unshared_scores(self, run_index: int, first: Evaluation, second: Evaluation) -> None:
        """Name the scores of a suite that one of the two does not have, or has by another metric."""
        sides = [{one.name: one.metric for one in side.scores} for side in (first, second)]
        for score in dict.fromkeys([*sides[0], *sides[1]]):
            metrics = [side.get(score) for side in sides]
            if None in metrics:
                why = self._missing_reason(run_index, "score", in_baseline=metrics[0] is None)
                self._add_not_comparable(run_index, first.suite, score, why)
            elif metrics[0] != metrics[1]:
                why = f"two metrics give it: {metrics[0]} in the one, {metrics[1]} in the other"
                self._add_not_comparable(run_index, first.suite, score, why)

    def _missing_reason(self, run_index: int, what: str, *, in_baseline: bool) -> str:
        names = [self.loaded_runs[one].summary.name for one in (self.baseline, run_index)]
        lacking, having = names if in_baseline else reversed(names)
        return f"{lacking} has no such {what}, {having} has"

    def _compare_score(self, run_index: int, suite: str, score: Score, trials: int) -> PairedScore | None:
        names = (self.loaded_runs[self.baseline].summary.name, self.loaded_runs[run_index].summary.name)
        first, second = self.last_evaluation(self.baseline, suite), self.last_evaluation(run_index, suite)
        other = second.matching_score(score)
        assert other is not None
        try:
            require_same_signature(suite, score, other)
            metric = self.get_metric(suite, score)
            _require_same_value(metric, other)
            aligned = align_items(first, second, names)
            seed = derive_seed(COMPARISON_SEED, "compare", suite)
            made = compare_scores((first, score), (second, other), aligned.ids, metric, seed=seed, trials=trials)
        except HarnessError as error:
            why = error.what if error.where == "compare" else f"{error.where}: {error.what}"
            self.not_comparable.append(NotComparable(run_index, suite, score.name, why))
            return None
        return PairedScore(
            run=run_index,
            suite=suite,
            role=self._suite_settings(suite).get("role", "domain"),
            metric=score.metric,
            score=score.name,
            signature=score.signature,
            higher_is_better=score.higher_is_better,
            n=made.n,
            dropped=aligned.dropped,
            first=made.first,
            second=made.second,
            difference=made.difference,
            test=made.test,
            p=made.p,
            p_holm=math.nan,
            verdict="no evidence",
            needed=None,
        )


def _with_verdict(pair: PairedScore, p_holm: float, comparisons: int) -> PairedScore:
    verdict: PairVerdict = corrected_verdict(pair.difference, pair.higher_is_better, p_holm)
    if pair.higher_is_better is None and verdict == "no evidence":
        apart = pair.difference.low > 0 or pair.difference.high < 0
        verdict = "different" if apart and p_holm < SIGNIFICANCE_LEVEL else verdict
    needed = None
    if verdict in ("no evidence", "too few items"):
        needed = items_needed_for_verdict(pair.difference, comparisons)
        if needed is not None and pair.n >= MIN_ITEMS:
            needed = max(needed, pair.n + 1)  # that so many give none has just been seen
    return replace(pair, p_holm=p_holm, verdict=verdict, needed=needed)


def _require_same_value(metric: Metric, score: Score) -> None:
    """Raise HarnessError when the metric that is installed here does not give the score that the run was given."""
    if not score.statistics or score.name not in metric.score_names:
        what = f"the run has no statistics of {score.name} that the metric {score.metric!r} here can read"
        raise HarnessError("compare", what)
    try:
        value = metric.aggregate(score.name, [math.fsum(column) for column in zip(*score.statistics, strict=True)])
    except (ValueError, TypeError, IndexError) as error:
        what = f"the metric {score.metric!r} here cannot read what the run kept ({type(error).__name__}: {error})"
        raise HarnessError("compare", what) from error
    if math.isfinite(score.value) and not math.isclose(value, score.value, rel_tol=1e-6, abs_tol=1e-9):
        what = f"the metric {score.metric!r} here gives {value:.6g} where the run measured {score.value:.6g}"
        raise HarnessError("compare", what)
