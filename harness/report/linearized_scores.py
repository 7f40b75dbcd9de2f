"""Scores and matrix summaries of a finished run with the contribution of every item, so that runs can be paired."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from harness.errors import HarnessError
from harness.interfaces.metric import Metric
from harness.report.finished_run import FinishedRun, load_run_json
from harness.report.paired_difference import ScoredEvaluation, item_groups, item_statistics
from harness.report.stage_suite_matrix import StageSuiteMatrix, parse_matrix
from harness.spec import matrix_summaries
from harness.statistics import forgetting
from harness.statistics.item_statistics import score_function, score_of, scores_without_each
from harness.statistics.seeds import Linearized, linearize
from harness.types import Evaluation, Score

MetricsBySuite = Mapping[str, Mapping[str, Metric]]


def linearize_score(scored: ScoredEvaluation, ids: Sequence[str], metric: Metric) -> Linearized:
    """Return a score over the items of these ids, with the contribution of each item, or of each group of items."""
    statistics = item_statistics(scored, ids)
    return linearize(statistics, score_function(metric, scored[1].name), item_groups(scored[0], ids) or ids)


def linearize_summary(run: FinishedRun, axis: str, metrics: MetricsBySuite) -> Linearized | None:
    """Return a summary of a run's stage × suite matrix, with the items of the suites that take part.

    Args:
        run: The run.
        axis: `summary:score`.
        metrics: Suite -> metric name -> metric.

    Returns:
        The summary in its own sign; None if the matrix does not have it.

    Raises:
        HarnessError: The report of the run is damaged.
    """
    summary, _, score_name = axis.partition(":")
    matrix = _load_matrices(run).get(score_name)
    if matrix is None:
        return None
    evaluated = _evaluations_by_suite(run, matrix)
    on_base = [column for column, stages in enumerate(evaluated) if stages and stages[0] is not None]
    general_summary = forgetting.GENERAL_SUMMARIES.get(summary)
    function: Callable[[np.ndarray], np.ndarray]
    if general_summary is not None:
        columns = [column for column in on_base if matrix.general[column]]
        function = general_summary
    else:
        stage_count = len(run.stages) - 1
        columns = [
            column
            for column, stage in enumerate(matrix.learned)
            if stage is not None
            and matrix_summaries.takes_part(summary, stage, stage_count)
            and (column in on_base or summary != "forward_transfer")
        ]
        task_stages = [int(matrix.learned[column] or 0) for column in columns]
        function = partial(forgetting.SUMMARIES[summary], task_stage=task_stages)
    if not columns:
        return None
    used = [(evaluated[column], metrics[matrix.suites[column]][matrix.metric]) for column in columns]
    return _linearize_matrix(used, matrix, function)


def _linearize_matrix(
    columns: Sequence[tuple[Sequence[tuple[Evaluation, Score] | None], Metric]],
    matrix: StageSuiteMatrix,
    function: Callable[[np.ndarray], np.ndarray],
) -> Linearized:
    """Return a function of the matrix of utilities, with the contribution of each item by the jackknife.

    Args:
        columns: For each suite its evaluations, one for each stage, and its metric.
        matrix: Describes the score.
        function: Computes the summary of matrices (..., stages + 1, suites).
    """
    sign = 1.0 if matrix.higher_is_better else -1.0
    values = np.full((len(columns[0][0]), len(columns)), np.nan)  # (stages + 1, suites)
    without: list[np.ndarray] = []  # for each suite (items, stages + 1): the score without each item
    items: list[list[tuple[str, str]]] = []
    for column, (stages, metric) in enumerate(columns):
        keys = _item_keys(next(stage for stage in stages if stage is not None)[0])
        left_out, aggregate = np.full((len(keys), len(stages)), np.nan), score_function(metric, matrix.score)
        for row, stage in enumerate(stages):
            if stage is not None:
                statistics = np.asarray(stage[1].statistics, dtype=np.float64)
                values[row, column] = sign * score_of(aggregate, statistics)
                left_out[:, row] = sign * scores_without_each(statistics, aggregate)
        without.append(left_out)
        items.append(keys)
    value = float(function(values))
    errors: dict[Any, float] = {}
    for column, (left_out, keys) in enumerate(zip(without, items, strict=True)):
        matrices = np.repeat(values[None], len(keys), axis=0)
        matrices[:, :, column] = left_out
        changes = (len(keys) - 1) / len(keys) * (value - function(matrices))
        for key, change in zip(keys, (changes - changes.mean()).tolist(), strict=True):
            errors[key] = errors.get(key, 0.0) + change
    return Linearized(value, errors, len(errors))


def _evaluations_by_suite(run: FinishedRun, matrix: StageSuiteMatrix) -> list[list[tuple[Evaluation, Score] | None]]:
    """Return for each suite its evaluation and score after every stage; None before the first one that has it."""
    by_stage = [{evaluation.suite: evaluation for evaluation in stage} for stage in run.evaluations]
    columns = []
    for suite in matrix.suites:
        stages: list[tuple[Evaluation, Score] | None] = []
        for stage in by_stage:
            scores = stage[suite].scores if suite in stage else ()
            found = [score for score in scores if (score.metric, score.name) == (matrix.metric, matrix.score)]
            stages.append((stage[suite], found[0]) if found else None)
        last_without = max((index for index, stage in enumerate(stages) if stage is None), default=-1)
        columns.append([None if index <= last_without else stage for index, stage in enumerate(stages)])
    return columns


def _load_matrices(run: FinishedRun) -> dict[str, StageSuiteMatrix]:
    """Load every matrix of a run, by the score's display name."""
    report: Mapping[str, Any] = load_run_json(run.folder, "report.json")
    try:
        return {matrix.called: matrix for matrix in map(parse_matrix, report["forgetting"])}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        what = f"is not the report of a run ({type(error).__name__}: {error})"
        raise HarnessError(str(run.folder / "report.json"), what, "run the arm again") from error


def _item_keys(evaluation: Evaluation) -> list[tuple[str, str]]:
    """Return (suite, group) of each item, or (suite, id) without groups; an id that occurs twice is numbered."""
    groups = item_groups(evaluation, None)
    if groups is not None:
        return [(evaluation.suite, group) for group in groups]
    seen: dict[str, int] = {}
    keys = []
    for item in evaluation.items:
        seen[item.id] = seen.get(item.id, 0) + 1
        keys.append((evaluation.suite, item.id if seen[item.id] == 1 else f"{item.id}#{seen[item.id]}"))
    return keys
