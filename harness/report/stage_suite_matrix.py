"""The stage × suite matrix of each score, and its continual-learning summaries with intervals over the items."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from harness.gate import summary_score_names
from harness.interfaces.metric import Metric
from harness.seeding import derive_seed
from harness.spec import matrix_summaries
from harness.spec.matrix_summaries import stage_of_suite
from harness.statistics import forgetting
from harness.statistics.intervals import Estimate, estimate_from_replicates, magnitude, replicates
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


def build_matrices(
    plan: Plan,
    evaluations: Sequence[tuple[Evaluation, ...]],
    metrics: Mapping[str, Mapping[str, Metric]],
    *,
    seed: int,
    taught_in_stage: Mapping[str, int] | None = None,
) -> tuple[StageSuiteMatrix, ...]:
    """Build the matrix of every score, in the order of the suites.

    Items are resampled suite by suite, the same ones for all stages.

    Args:
        plan: The plan with the suites.
        evaluations: One tuple per stage, the base first, with the same items. A suite may start at a later stage.
        metrics: Suite -> metric name -> metric.
        seed: Seed of the bootstrap.
        taught_in_stage: Suite -> the stage, from 1, that teaches it; None: `stage_of_suite`.
    """
    by_stage = [{evaluation.suite: evaluation for evaluation in stage} for stage in evaluations]
    builder = _MatrixBuilder(
        by_stage=by_stage,
        metrics=metrics,
        taught_in_stage=stage_of_suite(plan) if taught_in_stage is None else taught_in_stage,
        general_suites=frozenset(suite.name for suite in plan.suites if suite.role == "general"),
        seed=seed,
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
    seed: int

    def build(self, key: tuple[str, str], suites: Sequence[str], display_name: str) -> StageSuiteMatrix:
        """Build the matrix of the score `key`, (metric, score), over the suites that have it."""
        metric_name, score_name = key
        columns, column_replicates, first_scores = [], [], []
        for suite in suites:
            first = first_stage_of_suite(suite, self.by_stage) or 0
            scores = [_find_score(stage[suite], key) for stage in self.by_stage[first:]]
            first_scores.append(scores[0])
            column, resampled = replicates(
                [score.statistics for score in scores],
                partial(self.metrics[suite][metric_name].aggregate, score_name),
                seed=derive_seed(self.seed, "report", suite),
            )  # (stages + 1 - first,) and (resamples, stages + 1 - first)
            columns.append(np.pad(column, (first, 0), constant_values=np.nan))
            column_replicates.append(np.pad(resampled, ((0, 0), (first, 0)), constant_values=np.nan))
        resamples = min(map(len, column_replicates))
        values = np.stack(columns, axis=-1)  # (stages + 1, suites)
        resampled_values = np.stack([each[:resamples] for each in column_replicates], axis=-1)
        higher_is_better = bool(first_scores[0].higher_is_better)
        return StageSuiteMatrix(
            score=score_name,
            metric=metric_name,
            higher_is_better=higher_is_better,
            suites=tuple(suites),
            learned=tuple(self.taught_in_stage.get(suite) for suite in suites),
            general=tuple(suite in self.general_suites for suite in suites),
            values=tuple(tuple(map(float, row)) for row in values),
            summaries=self._summaries(
                suites,
                forgetting.utility(values, higher_is_better),
                forgetting.utility(resampled_values, higher_is_better),
                [score.n for score in first_scores],
            ),
            called=display_name,
        )

    def _summaries(
        self, suites: Sequence[str], values: np.ndarray, resampled: np.ndarray, item_counts: Sequence[int]
    ) -> dict[str, Estimate]:
        """Compute every summary that is defined.

        Args:
            suites: The columns.
            values: Utilities, (stages + 1, suites).
            resampled: Their replicates, (resamples, stages + 1, suites).
            item_counts: Number of items of each suite.
        """
        evaluated_on_base = [column for column, suite in enumerate(suites) if suite in self.by_stage[0]]
        tasks = [column for column, suite in enumerate(suites) if suite in self.taught_in_stage]
        general = [column for column in evaluated_on_base if suites[column] in self.general_suites]

        def summarize(summary: Callable[[np.ndarray], np.ndarray], columns: Sequence[int]) -> Estimate:
            point = values[:, columns]
            items = sum(item_counts[column] for column in columns)
            return estimate_from_replicates(
                float(summary(point)), summary(resampled[:, :, columns]), items, magnitude(point)
            )

        summaries = {}
        for name, task_summary in forgetting.SUMMARIES.items():
            # Only suites that take part count as items: earlier tasks for forgetting, later ones for forward transfer,
            # which is relative to the base model.
            columns = [
                column
                for column in tasks
                if matrix_summaries.takes_part(name, self.taught_in_stage[suites[column]], len(self.by_stage) - 1)
                and (column in evaluated_on_base or name != "forward_transfer")
            ]
            if columns:
                task_stages = [self.taught_in_stage[suites[column]] for column in columns]
                summaries[name] = summarize(partial(task_summary, task_stage=task_stages), columns)
        if general:
            for name, general_summary in forgetting.GENERAL_SUMMARIES.items():
                summaries[name] = summarize(general_summary, general)
        return {name: estimate for name, estimate in summaries.items() if not np.isnan(estimate.value)}


def _find_score(evaluation: Evaluation, key: tuple[str, str]) -> Score:
    return next(score for score in evaluation.scores if (score.metric, score.name) == key)
