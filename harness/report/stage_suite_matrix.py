"""The stage × suite matrix of each score, and what continual learning draws from it, with intervals over the items."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from harness.gate import summary_score_names
from harness.interfaces.metric import Metric
from harness.seeding import derive_seed
from harness.spec.matrix_summaries import stage_of_suite
from harness.statistics import forgetting
from harness.statistics.intervals import Estimate, estimate_from_replicates, magnitude, replicates
from harness.types import Evaluation, Plan, Score


@dataclass(frozen=True)
class StageSuiteMatrix:
    """One score of all the suites that have it.

    suites: the columns. learned: for each the stage, from 1, whose task it is; None for a suite that no stage teaches.
    general: for each whether it measures what is not to be forgotten. values: stages (the base first) × suites, as
    measured; NaN before a suite's first stage, where a run goes on from one that did not have it. summaries: name ->
    number with its standard error and 95 % interval; higher is better in all but those
    with "forgetting" in their name, whatever the metric's own direction. called: see `gate.called`.
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
    """The matrix of every score, in the order in which the suites name them.

    evaluations: one tuple a stage, the base model first, the same items in each; a suite may begin at a later stage.
    taught_in_stage: suite -> the stage that teaches it; None: see `stage_of_suite`. Items are resampled suite by suite,
    the same ones for all stages.
    """
    by_stage = [{one.suite: one for one in stage} for stage in evaluations]
    roles = {suite.name: suite.role for suite in plan.suites}
    taught_in_stage = stage_of_suite(plan) if taught_in_stage is None else taught_in_stage
    names, columns = summary_score_names(metrics), dict[tuple[str, str], list[str]]()
    for suite in plan.suites:
        first = first_stage_of_suite(suite.name, by_stage)
        if first is not None and first < len(by_stage) - 1:
            for score in by_stage[first][suite.name].scores:
                if score.higher_is_better is None:
                    continue  # of a score without a better direction nothing can be forgotten
                columns.setdefault((score.metric, score.name), []).append(suite.name)
    made = (
        _build_matrix(
            key, suites, by_stage, metrics, taught_in_stage, {name: roles[name] == "general" for name in suites}, seed
        )
        for key, suites in columns.items()
    )
    return tuple(replace(one, called=names.get((one.metric, one.score), one.score)) for one in made)


def first_stage_of_suite(suite: str, by_stage: Sequence[Mapping[str, Evaluation]]) -> int | None:
    """The stage from which on every stage evaluated the suite; None: the last one did not."""
    if suite not in by_stage[-1]:
        return None
    without = [number for number, stage in enumerate(by_stage) if suite not in stage]
    return without[-1] + 1 if without else 0


def _build_matrix(
    key: tuple[str, str],
    suites: Sequence[str],
    by_stage: Sequence[Mapping[str, Evaluation]],
    metrics: Mapping[str, Mapping[str, Metric]],
    taught_in_stage: Mapping[str, int],
    general: Mapping[str, bool],
    seed: int,
) -> StageSuiteMatrix:
    metric, name = key
    columns, drawn, scores = [], [], []
    for suite in suites:
        first = first_stage_of_suite(suite, by_stage) or 0
        found = [_find_score(stage[suite], key) for stage in by_stage[first:]]
        scores.append(found[0])
        values, repeated = replicates(
            [one.statistics for one in found],
            lambda total, suite=suite: metrics[suite][metric].aggregate(name, total),  # type: ignore[misc]
            seed=derive_seed(seed, "report", suite),
        )
        columns.append(np.pad(values, (first, 0), constant_values=np.nan))
        drawn.append(np.pad(repeated, ((0, 0), (first, 0)), constant_values=np.nan))
    values = np.stack(columns, axis=-1)  # (stages + 1, suites)
    resamples = min(len(repeated) for repeated in drawn)
    repeats = np.stack([repeated[:resamples] for repeated in drawn], axis=-1)  # (resamples, stages + 1, suites)
    better = bool(scores[0].higher_is_better)
    sizes = [one.n for one in scores]
    since_base = [number for number, suite in enumerate(suites) if suite in by_stage[0]]
    tasks = [number for number, suite in enumerate(suites) if suite in taught_in_stage]
    abilities = [number for number in since_base if general[suites[number]]]
    return StageSuiteMatrix(
        score=name,
        metric=metric,
        higher_is_better=better,
        suites=tuple(suites),
        learned=tuple(taught_in_stage.get(suite) for suite in suites),
        general=tuple(general[suite] for suite in suites),
        values=tuple(tuple(map(float, row)) for row in values),
        summaries={
            **_task_summaries(
                values, repeats, tasks, [taught_in_stage[suites[n]] for n in tasks], since_base, better, sizes
            ),
            **_general_summaries(values, repeats, abilities, better, sizes),
        },
    )


def _find_score(evaluation: Evaluation, key: tuple[str, str]) -> Score:
    return next(one for one in evaluation.scores if (one.metric, one.name) == key)


def _task_summaries(
    values: np.ndarray,
    repeats: np.ndarray,
    tasks: Sequence[int],
    task_stages: Sequence[int],
    since_base: Sequence[int],
    higher_is_better: bool,
    item_counts: Sequence[int],
) -> dict[str, Estimate]:
    """since_base: the suites that the base model was measured on; what is told against it is told of these alone."""
    made = {}
    for name, summary in forgetting.SUMMARIES.items():
        pairs = [
            (number, stage)
            for number, stage in zip(tasks, task_stages, strict=True)
            if number in since_base or name != "forward_transfer"
        ]
        if pairs:
            columns, stages = [number for number, _ in pairs], [stage for _, stage in pairs]
            point = forgetting.utility(values[:, columns], higher_is_better)
            drawn = forgetting.utility(repeats[:, :, columns], higher_is_better)
            items = sum(item_counts[number] for number in columns)
            made[name] = estimate_from_replicates(
                float(summary(point, stages)), summary(drawn, stages), items, magnitude(point)
            )
    return {name: one for name, one in made.items() if not np.isnan(one.value)}


def _general_summaries(
    values: np.ndarray,
    repeats: np.ndarray,
    general_columns: Sequence[int],
    higher_is_better: bool,
    item_counts: Sequence[int],
) -> dict[str, Estimate]:
    if not general_columns:
        return {}
    point = forgetting.utility(values[:, general_columns], higher_is_better)
    drawn = forgetting.utility(repeats[:, :, general_columns], higher_is_better)
    items = sum(item_counts[number] for number in general_columns)
    made = {
        name: estimate_from_replicates(float(summary(point)), summary(drawn), items, magnitude(point))
        for name, summary in forgetting.GENERAL_SUMMARIES.items()
    }
    return {name: one for name, one in made.items() if not np.isnan(one.value)}
