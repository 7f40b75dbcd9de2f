"""The stage × suite matrix of each score, and its continual-learning summaries with intervals over the items."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from harness.gate import summary_score_names
from harness.interfaces.metric import Metric
from harness.report.finished_run import parse_estimate
from harness.report.paired_difference import ScoredEvaluation, item_groups, score_difference
from harness.report.score_change import estimate_of_score
from harness.spec import matrix_summaries
from harness.spec.matrix_summaries import stage_of_suite
from harness.statistics import forgetting
from harness.statistics.intervals import Estimate, estimate, mean_over_suites
from harness.statistics.item_statistics import Aggregate, ItemsAggregate, score_function, score_of
from harness.types import Evaluation, Plan, Score


@dataclass(frozen=True)
class StageSuiteMatrix:
    """One score of all suites that have it.

    Attributes:
        score: Name of the score.
        metric: Name of its metric.
        higher_is_better: Direction of the score.
        suites: The columns.
        learned: For each suite the stage, from 1, that teaches it; None if no stage does.
        general: For each suite whether its role is `general`.
        values: Stages (the base first) × suites. NaN before the first stage that evaluated a suite, which occurs in a
            continued run.
        summaries: Name -> number with its standard error and 95 % interval. Higher is better for every metric, except
            in summaries with "forgetting" in their name.
        called: Display name of the score, see `gate.summary_score_names`.
    """

    score: str
    metric: str
    higher_is_better: bool
    suites: tuple[str, ...]
    learned: tuple[int | None, ...]
    general: tuple[bool, ...]
    values: tuple[tuple[float, ...], ...]
    summaries: Mapping[str, Estimate]
    called: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "called", self.called or self.score)


def parse_matrix(document: Mapping[str, Any]) -> StageSuiteMatrix:
    """Return a matrix that a `report.json` has.

    Raises:
        KeyError, TypeError, ValueError, AttributeError: The document is damaged.
    """
    return StageSuiteMatrix(
        score=str(document["score"]),
        metric=str(document["metric"]),
        higher_is_better=bool(document["higher_is_better"]),
        suites=tuple(map(str, document["suites"])),
        learned=tuple(None if stage is None else int(stage) for stage in document["learned"]),
        general=tuple(map(bool, document["general"])),
        values=tuple(tuple(math.nan if value is None else float(value) for value in row) for row in document["values"]),
        summaries={str(name): parse_estimate(estimate) for name, estimate in document["summaries"].items()},
        called=str(document.get("called") or ""),
    )


def build_matrices(
    plan: Plan,
    evaluations: Sequence[tuple[Evaluation, ...]],
    metrics: Mapping[str, Mapping[str, Metric]],
    *,
    taught_in_stage: Mapping[str, int] | None = None,
) -> tuple[StageSuiteMatrix, ...]:
    """Build the matrix of every score, in the order of the suites.

    The interval of a summary is computed from those of the suites that take part: see `intervals.mean_over_suites`.

    Args:
        plan: The plan with the suites.
        evaluations: One tuple per stage, the base first, with the same items. A suite may start at a later stage.
        metrics: Suite -> metric name -> metric.
        taught_in_stage: Suite -> the stage, from 1, that teaches it; None: `stage_of_suite`.
    """
    by_stage = [{evaluation.suite: evaluation for evaluation in stage} for stage in evaluations]
    builder = _MatrixBuilder(
        by_stage=by_stage,
        metrics=metrics,
        taught_in_stage=stage_of_suite(plan) if taught_in_stage is None else taught_in_stage,
        general_suites=frozenset(suite.name for suite in plan.suites if suite.role == "general"),
    )
    suites_of_score: dict[tuple[str, str], list[str]] = {}
    for suite in plan.suites:
        first = first_stage_of_suite(suite.name, by_stage)
        if first is not None and first < len(by_stage) - 1:
            for score in by_stage[first][suite.name].scores:
                if score.higher_is_better is not None:  # without a direction nothing can be forgotten
                    suites_of_score.setdefault((score.metric, score.name), []).append(suite.name)
    names = summary_score_names(metrics)
    return tuple(builder.build(key, suites, names.get(key, key[1])) for key, suites in suites_of_score.items())


def first_stage_of_suite(suite: str, by_stage: Sequence[Mapping[str, Evaluation]]) -> int | None:
    """Return the stage from which on every stage evaluated the suite; None if the last one did not."""
    if suite not in by_stage[-1]:
        return None
    stages_without = [stage_index for stage_index, stage in enumerate(by_stage) if suite not in stage]
    return stages_without[-1] + 1 if stages_without else 0


@dataclass(frozen=True)
class _MatrixBuilder:
    """Builds matrices from the evaluations of a run."""

    by_stage: Sequence[Mapping[str, Evaluation]]
    metrics: Mapping[str, Mapping[str, Metric]]
    taught_in_stage: Mapping[str, int]
    general_suites: frozenset[str]

    def build(self, key: tuple[str, str], suites: Sequence[str], display_name: str) -> StageSuiteMatrix:
        """Build the matrix of the score `key`, (metric, score), over the suites that have it."""
        metric_name, score_name = key
        columns = [
            _Column(
                stages=self._scored_stages(suite, key),
                metric=self.metrics[suite][metric_name],
                learned=self.taught_in_stage.get(suite),
                is_general=suite in self.general_suites,
            )
            for suite in suites
        ]
        return StageSuiteMatrix(
            score=score_name,
            metric=metric_name,
            higher_is_better=columns[0].higher_is_better,
            suites=tuple(suites),
            learned=tuple(column.learned for column in columns),
            general=tuple(column.is_general for column in columns),
            values=tuple(zip(*(column.values.tolist() for column in columns), strict=True)),
            summaries=_summaries(columns),
            called=display_name,
        )

    def _scored_stages(self, suite: str, key: tuple[str, str]) -> tuple[ScoredEvaluation | None, ...]:
        first = first_stage_of_suite(suite, self.by_stage) or 0
        measured = [(stage[suite], _find_score(stage[suite], key)) for stage in self.by_stage[first:]]
        return (*[None] * first, *measured)


@dataclass(frozen=True)
class _Column:
    """One score of one suite after every stage.

    Attributes:
        stages: The score after each stage, the base first; None before the first stage that evaluated the suite.
        metric: Its metric.
        learned: The stage, from 1, that teaches the suite; None if no stage does.
        is_general: Whether the role of the suite is `general`.
    """

    stages: tuple[ScoredEvaluation | None, ...]
    metric: Metric
    learned: int | None
    is_general: bool

    @property
    def values(self) -> np.ndarray:
        """The scores, (stages + 1,); NaN for None."""
        return np.array([np.nan if stage is None else stage[1].value for stage in self.stages])

    @property
    def higher_is_better(self) -> bool:
        """Direction of the score."""
        return bool(next(stage for stage in self.stages if stage is not None)[1].higher_is_better)

    def takes_part(self, summary: str) -> bool:
        """Return whether a summary of tasks is defined for the suite."""
        if self.learned is None or not matrix_summaries.takes_part(summary, self.learned, len(self.stages) - 1):
            return False
        return self.stages[0] is not None or summary != "forward_transfer"  # which is relative to the base model

    def task_contrast(self, summary: str) -> Estimate | None:
        """Return the summary of this suite alone; None if it needs a stage that did not evaluate the suite."""
        assert self.learned is not None
        utilities = forgetting.utility(self.values, self.higher_is_better)
        better, worse = forgetting.contrast_of_task(summary, utilities, self.learned)
        stage = self.stages[better]
        if worse is not None:
            return self.change(worse, better)
        return None if stage is None else self._as_utility(estimate_of_score(stage[1]))

    def change(self, first: int, second: int) -> Estimate | None:
        """Return how much better the score is after a stage than after another, over the same items."""
        before, after = self.stages[first], self.stages[second]
        if before is None or after is None:
            return None
        if first == second:  # the best stage is the last
            return Estimate(0.0, 0.0, 0.0, 0.0, before[1].n, "t", before[1].groups)
        return self._as_utility(score_difference(before, after, self.metric).difference)

    def relative_loss(self) -> Estimate | None:
        """Return the mean over stages of (base − stage) / |base| in percent; None if the base is 0 or not measured.

        The interval is the union of two: the jackknife's of the ratio, and the mean of the intervals of the stages'
        losses over |base|, which is right if few items changed.
        """
        base, later = self.stages[0], [stage for stage in self.stages[1:] if stage is not None]
        if base is None or not base[1].value or not math.isfinite(base[1].value):
            return None
        scale = 100 / abs(base[1].value)
        losses = [change.scaled(-scale) for k in range(1, len(self.stages)) if (change := self.change(0, k))]
        statistics = [stage[1].statistics for stage in (base, *later)]
        joined = [sum(vectors, ()) for vectors in zip(*statistics, strict=True)]  # (items, stages * statistics)
        width = len(statistics[0][0])

        score = score_function(self.metric, base[1].name)

        def relative_forgetting(rows: np.ndarray) -> float:  # (items, stages * statistics)
            by_stage = [rows[:, start : start + width] for start in range(0, rows.shape[1], width)]
            scores = np.array([[score_of(score, stage)] for stage in by_stage])
            return float(forgetting.relative_forgetting(forgetting.utility(scores, self.higher_is_better)))

        aggregate: Aggregate = ItemsAggregate(relative_forgetting)
        if self.metric.sums_statistics:
            aggregate = lambda total: relative_forgetting(np.array([total]))  # noqa: E731
        ratio = estimate(joined, aggregate, groups=item_groups(base[0], None))
        return replace(
            ratio,
            stderr=max(ratio.stderr, sum(loss.stderr for loss in losses) / len(losses)),
            low=min(ratio.low, sum(loss.low for loss in losses) / len(losses)),
            high=max(ratio.high, sum(loss.high for loss in losses) / len(losses)),
        )

    def _as_utility(self, result: Estimate) -> Estimate:
        return result if self.higher_is_better else result.scaled(-1)


def _summaries(columns: Sequence[_Column]) -> dict[str, Estimate]:
    """Compute every summary that is defined. Only suites that take part count as items."""
    general = [column for column in columns if column.is_general and column.stages[0] is not None]
    contrasts = {
        name: [column.task_contrast(name) for column in columns if column.takes_part(name)]
        for name in forgetting.SUMMARIES
    }
    contrasts["general_ability_delta"] = [column.change(0, len(column.stages) - 1) for column in general]
    contrasts["relative_forgetting"] = [column.relative_loss() for column in general]
    summaries = {}
    for name, estimates in contrasts.items():
        defined = [each for each in estimates if each is not None and not math.isnan(each.value)]
        if defined and len(defined) == len(estimates):
            summaries[name] = mean_over_suites(defined)
    return summaries


def _find_score(evaluation: Evaluation, key: tuple[str, str]) -> Score:
    return next(score for score in evaluation.scores if (score.metric, score.name) == key)
