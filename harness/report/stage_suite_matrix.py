"""The stage × suite matrix of each score, and what continual learning draws from it, with intervals over the items."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from harness.gate import called
from harness.interfaces.metric import Metric
from harness.seeding import derive
from harness.spec.matrix_summaries import owners
from harness.statistics import forgetting
from harness.statistics.intervals import Estimate, magnitude, replicates, summarise
from harness.types import Evaluation, Plan, Score


@dataclass(frozen=True)
class Matrix:
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


def matrices(
    plan: Plan,
    evaluations: Sequence[tuple[Evaluation, ...]],
    metrics: Mapping[str, Mapping[str, Metric]],
    *,
    seed: int,
    teaches: Mapping[str, int] | None = None,
) -> tuple[Matrix, ...]:
    """The matrix of every score, in the order in which the suites name them.

    evaluations: one tuple a stage, the base model first, the same items in each; a suite may begin at a later stage.
    teaches: suite -> the stage that teaches it; None: see `owners`. Items are resampled suite by suite, the same ones
    for all stages.
    """
    by_stage = [{one.suite: one for one in stage} for stage in evaluations]
    roles = {suite.name: suite.role for suite in plan.suites}
    teaches = owners(plan) if teaches is None else teaches
    names, columns = called(metrics), dict[tuple[str, str], list[str]]()
    for suite in plan.suites:
        first = first_of(suite.name, by_stage)
        if first is not None and first < len(by_stage) - 1:
            for score in by_stage[first][suite.name].scores:
                if score.higher_is_better is None:
                    continue  # of a score without a better direction nothing can be forgotten
                columns.setdefault((score.metric, score.name), []).append(suite.name)
    made = (
        _matrix(key, suites, by_stage, metrics, teaches, {name: roles[name] == "general" for name in suites}, seed)
        for key, suites in columns.items()
    )
    return tuple(replace(one, called=names.get((one.metric, one.score), one.score)) for one in made)


def first_of(suite: str, by_stage: Sequence[Mapping[str, Evaluation]]) -> int | None:
    """The stage from which on every stage evaluated the suite; None: the last one did not."""
    if suite not in by_stage[-1]:
        return None
    without = [number for number, stage in enumerate(by_stage) if suite not in stage]
    return without[-1] + 1 if without else 0


def _matrix(
    key: tuple[str, str],
    suites: Sequence[str],
    by_stage: Sequence[Mapping[str, Evaluation]],
    metrics: Mapping[str, Mapping[str, Metric]],
    teaches: Mapping[str, int],
    general: Mapping[str, bool],
    seed: int,
) -> Matrix:
    metric, name = key
    columns, drawn, scores = [], [], []
    for suite in suites:
        first = first_of(suite, by_stage) or 0
        found = [_score(stage[suite], key) for stage in by_stage[first:]]
        scores.append(found[0])
        values, repeated = replicates(
            [one.statistics for one in found],
            lambda total, suite=suite: metrics[suite][metric].aggregate(name, total),  # type: ignore[misc]
            seed=derive(seed, "report", suite),
        )
        columns.append(np.pad(values, (first, 0), constant_values=np.nan))
        drawn.append(np.pad(repeated, ((0, 0), (first, 0)), constant_values=np.nan))
    values = np.stack(columns, axis=-1)  # (stages + 1, suites)
    resamples = min(len(repeated) for repeated in drawn)
    repeats = np.stack([repeated[:resamples] for repeated in drawn], axis=-1)  # (resamples, stages + 1, suites)
    better = bool(scores[0].higher_is_better)
    sizes = [one.n for one in scores]
    since_base = [number for number, suite in enumerate(suites) if suite in by_stage[0]]
    tasks = [number for number, suite in enumerate(suites) if suite in teaches]
    abilities = [number for number in since_base if general[suites[number]]]
    return Matrix(
        score=name,
        metric=metric,
        higher_is_better=better,
        suites=tuple(suites),
        learned=tuple(teaches.get(suite) for suite in suites),
        general=tuple(general[suite] for suite in suites),
        values=tuple(tuple(map(float, row)) for row in values),
        summaries={
            **_of_tasks(values, repeats, tasks, [teaches[suites[n]] for n in tasks], since_base, better, sizes),
            **_of_abilities(values, repeats, abilities, better, sizes),
        },
    )


def _score(evaluation: Evaluation, key: tuple[str, str]) -> Score:
    return next(one for one in evaluation.scores if (one.metric, one.name) == key)


def _of_tasks(
    values: np.ndarray,
    repeats: np.ndarray,
    tasks: Sequence[int],
    own: Sequence[int],
    since_base: Sequence[int],
    better: bool,
    sizes: Sequence[int],
) -> dict[str, Estimate]:
    """since_base: the suites that the base model was measured on; what is told against it is told of these alone."""
    made = {}
    for name, summary in forgetting.SUMMARIES.items():
        pairs = [
            (number, stage)
            for number, stage in zip(tasks, own, strict=True)
            if number in since_base or name != "forward_transfer"
        ]
        if pairs:
            columns, stages = [number for number, _ in pairs], [stage for _, stage in pairs]
            point = forgetting.utility(values[:, columns], better)
            drawn = forgetting.utility(repeats[:, :, columns], better)
            items = sum(sizes[number] for number in columns)
            made[name] = summarise(float(summary(point, stages)), summary(drawn, stages), items, magnitude(point))
    return {name: one for name, one in made.items() if not np.isnan(one.value)}


def _of_abilities(
    values: np.ndarray, repeats: np.ndarray, abilities: Sequence[int], better: bool, sizes: Sequence[int]
) -> dict[str, Estimate]:
    if not abilities:
        return {}
    point = forgetting.utility(values[:, abilities], better)
    drawn = forgetting.utility(repeats[:, :, abilities], better)
    items = sum(sizes[number] for number in abilities)
    made = {
        name: summarise(float(summary(point)), summary(drawn), items, magnitude(point))
        for name, summary in forgetting.GENERAL_SUMMARIES.items()
    }
    return {name: one for name, one in made.items() if not np.isnan(one.value)}
