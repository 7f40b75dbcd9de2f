"""Each run against the baseline, score by score, over the items that both were measured on.

Knows runs with their files, and the metrics of their specs; not how a comparison is shown.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from harness.comparison.run_summary import Found
from harness.errors import HarnessError
from harness.evaluation.rescore import make_metric
from harness.interfaces.metric import Metric
from harness.registry import Registry
from harness.report.finished_run import Kept
from harness.report.paired_difference import LEVEL, align, compared, judged, require_one_way, trials_for
from harness.report.run_report import FEWEST, Verdict, items_needed
from harness.seeding import derive
from harness.statistics.intervals import Estimate
from harness.statistics.significance import holm
from harness.types import Evaluation, Role, Score

Judgement = Verdict | Literal["different"]

SEED = 0
"""Of the draws of every comparison: runs of different seeds are compared by the same draws."""


@dataclass(frozen=True)
class Pair:
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
    verdict: Judgement
    needed: int | None


@dataclass(frozen=True)
class Refused:
    """What of a run could not be compared, and why. suite, score: empty where it is the whole run, or whole suite."""

    run: int
    suite: str
    score: str
    why: str


class Bench:
    """The runs beside each other: what they share, and the metrics to measure it with."""

    def __init__(self, found: Sequence[Found], baseline: int, registry: Registry) -> None:
        self.found, self.baseline, self._registry = found, baseline, registry
        self.refused: list[Refused] = []
        self._metrics: dict[tuple[str, str], Metric | HarnessError] = {}

    def pairs(self) -> tuple[Pair, ...]:
        """Every score that a run shares with the baseline; what cannot be compared is in `refused`."""
        base = self._whole(self.baseline)
        others = [number for number in range(len(self.found)) if number != self.baseline]
        shared = [one for number in others if base for one in self._shared(number, base)]
        trials = trials_for(len(shared))
        made = [pair for number, suite, score in shared if (pair := self._pair(number, suite, score, trials))]
        adjusted = holm([one.p for one in made])
        return tuple(_judged(one, p, len(made)) for one, p in zip(made, adjusted, strict=True))

    def evaluation(self, number: int, suite: str) -> Evaluation:
        """The suite after the last stage of a run that has been compared."""
        read = self.found[number].kept
        last = None if read is None else read.last(suite)
        assert last is not None
        return last

    def metric(self, suite: str, score: Score) -> Metric:
        """The metric of a score of the baseline. Raises HarnessError when it cannot be had, or gives other numbers."""
        key = (suite, score.metric)
        if key not in self._metrics:
            try:
                self._metrics[key] = self._made(suite, score.metric)
            except HarnessError as error:
                self._metrics[key] = error
        found = self._metrics[key]
        if isinstance(found, HarnessError):
            raise found
        _require_same_numbers(found, score)
        return found

    def _made(self, suite: str, name: str) -> Metric:
        given = self._settings(suite)
        options = given.get("metrics", {})
        # A metric that was added by `harness score` stands in no spec: its defaults must then give the same numbers.
        return make_metric(self._registry, name, options.get(name, {}), lang=given.get("lang", "auto"))

    def _settings(self, suite: str) -> Mapping[str, Any]:
        read = self.found[self.baseline].kept
        assert read is not None
        given: Mapping[str, Any] = read.spec.get("evaluate", {}).get(suite, {})
        return given

    def _whole(self, number: int) -> Kept | None:
        """The kept scores of a run that came to its end; else None, and why is said."""
        one = self.found[number]
        why = one.run.why
        if not one.finished:
            why = "the run has not come to its end"
        elif one.kept is None and not why:
            why = "the scores of its items cannot be had"
        if why or one.kept is None:
            self.refused.append(Refused(number, "", "", why))
            return None
        return one.kept

    def _shared(self, number: int, base: Kept) -> Iterator[tuple[int, str, Score]]:
        other = self._whole(number)
        if other is None:
            return
        for suite in dict.fromkeys(one.suite for read in (base, other) for stage in read.evaluations for one in stage):
            first, second = base.last(suite), other.last(suite)
            if first is None or second is None:
                self._refuse(number, suite, "", self._lacks(number, "suite", in_baseline=first is None))
                continue
            if not align(first, second).ids:
                self._refuse(number, suite, "", "the two share no item of it")
                continue
            self._refuse_unshared(number, first, second)
            yield from ((number, suite, one) for one in first.scores if second.like(one) is not None)

    def _refuse(self, number: int, suite: str, score: str, why: str) -> None:
        self.refused.append(Refused(number, suite, score, why))

    def _refuse_unshared(self, number: int, first: Evaluation, second: Evaluation) -> None:
        """Name the scores of a suite that one of the two does not have, or has by another metric."""
        sides = [{one.name: one.metric for one in side.scores} for side in (first, second)]
        for score in dict.fromkeys([*sides[0], *sides[1]]):
            metrics = [side.get(score) for side in sides]
            if None in metrics:
                why = self._lacks(number, "score", in_baseline=metrics[0] is None)
                self._refuse(number, first.suite, score, why)
            elif metrics[0] != metrics[1]:
                why = f"two metrics give it: {metrics[0]} in the one, {metrics[1]} in the other"
                self._refuse(number, first.suite, score, why)

    def _lacks(self, number: int, what: str, *, in_baseline: bool) -> str:
        names = [self.found[one].run.name for one in (self.baseline, number)]
        lacking, having = names if in_baseline else reversed(names)
        return f"{lacking} has no such {what}, {having} has"

    def _pair(self, number: int, suite: str, score: Score, trials: int) -> Pair | None:
        names = (self.found[self.baseline].run.name, self.found[number].run.name)
        first, second = self.evaluation(self.baseline, suite), self.evaluation(number, suite)
        other = second.like(score)
        assert other is not None
        try:
            require_one_way(suite, score, other)
            metric = self.metric(suite, score)
            _require_same_numbers(metric, other)
            aligned = align(first, second, names)
            seed = derive(SEED, "compare", suite)
            made = compared((first, score), (second, other), aligned.ids, metric, seed=seed, trials=trials)
        except HarnessError as error:
            why = error.what if error.where == "compare" else f"{error.where}: {error.what}"
            self.refused.append(Refused(number, suite, score.name, why))
            return None
        return Pair(
            run=number,
            suite=suite,
            role=self._settings(suite).get("role", "domain"),
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


def _judged(one: Pair, p_holm: float, comparisons: int) -> Pair:
    verdict: Judgement = judged(one.difference, one.higher_is_better, p_holm)
    if one.higher_is_better is None and verdict == "no evidence":
        apart = one.difference.low > 0 or one.difference.high < 0
        verdict = "different" if apart and p_holm < LEVEL else verdict
    needed = None
    if verdict in ("no evidence", "too few items"):
        needed = items_needed(one.difference, comparisons)
        if needed is not None and one.n >= FEWEST:
            needed = max(needed, one.n + 1)  # that so many give none has just been seen
    return replace(one, p_holm=p_holm, verdict=verdict, needed=needed)


def _require_same_numbers(metric: Metric, score: Score) -> None:
    """Raise HarnessError when the metric that is installed here does not give the score that the run was given."""
    if not score.statistics or score.name not in metric.names:
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
