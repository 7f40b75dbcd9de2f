"""Intransigence: how much less the stages of an arm learned than a joint run on all tasks, with its interval."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from harness.errors import HarnessError
from harness.interfaces.metric import Metric
from harness.report.finished_run import FinishedRun, load_run_json
from harness.seeding import derive_seed
from harness.statistics import forgetting
from harness.statistics.intervals import Estimate, estimate_from_replicates, magnitude, replicates
from harness.types import Evaluation, Score


@dataclass(frozen=True)
class Intransigence:
    """The intransigence of one arm by one score (Chaudhry et al., 2018, arXiv:1801.10112).

    It is the mean over tasks of the joint arm's final score minus the arm's score right after the task's stage.

    Attributes:
        arm: Name of the arm.
        score: Name of the score.
        suites: The tasks.
        value: In the unit of the score. Positive if the stages learned less than the joint arm, for every metric.
    """

    arm: str
    score: str
    suites: tuple[str, ...]
    value: Estimate


def compute_intransigence(
    arms: Mapping[str, FinishedRun], joint_arm: str, metrics: Mapping[str, Mapping[str, Metric]], *, seed: int
) -> tuple[Intransigence, ...]:
    """Compute the intransigence of every other arm by every score, over the items that both arms have.

    Items are resampled suite by suite, the same ones for both arms. A task with different signatures is ignored.

    Args:
        arms: Name -> finished run.
        joint_arm: Name of an arm that trained on all tasks together and has a result.
        metrics: Suite -> metric name -> metric.
        seed: Seed of the bootstrap.

    Raises:
        HarnessError: The report of an arm is damaged.
    """
    results = [
        _arm_intransigence(arm, run, arms[joint_arm], matrix, metrics, seed)
        for arm, run in arms.items()
        if arm != joint_arm
        for matrix in _load_matrices(run)
    ]
    return tuple(result for result in results if result is not None)


def _load_matrices(run: FinishedRun) -> list[tuple[str, str, str, dict[str, int]]]:
    """Load (metric, score, display name, suite -> the stage that teaches it) of each score of a run."""
    report: Mapping[str, Any] = load_run_json(run.folder, "report.json")
    try:
        return [
            (
                str(matrix["metric"]),
                str(matrix["score"]),
                str(matrix.get("called") or matrix["score"]),
                {
                    suite: int(stage)
                    for suite, stage in zip(matrix["suites"], matrix["learned"], strict=True)
                    if stage is not None
                },
            )
            for matrix in report["forgetting"]
        ]
    except (KeyError, TypeError, ValueError) as error:
        what = f"is not the report of a run ({type(error).__name__}: {error})"
        raise HarnessError(str(run.folder / "report.json"), what, "run the arm again") from error


def _arm_intransigence(
    arm: str,
    run: FinishedRun,
    joint: FinishedRun,
    matrix: tuple[str, str, str, Mapping[str, int]],
    metrics: Mapping[str, Mapping[str, Metric]],
    seed: int,
) -> Intransigence | None:
    metric_name, score_name, display_name, taught_in_stage = matrix
    values, resampled, suites, item_count = [], [], [], 0
    for suite, stage in taught_in_stage.items():
        learned = next((evaluation for evaluation in run.evaluations[stage] if evaluation.suite == suite), None)
        final = joint.last_evaluation(suite)
        learned_score, final_score = (_find_score(each, metric_name, score_name) for each in (learned, final))
        if learned is None or final is None or learned_score is None or final_score is None:
            continue
        if learned_score.signature != final_score.signature:
            continue  # `not_compared_notes` reports it
        statistics = [
            {item.id: vector for item, vector in zip(evaluation.items, score.statistics, strict=True)}
            for evaluation, score in ((learned, learned_score), (final, final_score))
        ]
        shared_ids = [item_id for item_id in statistics[0] if item_id in statistics[1]]
        if not shared_ids:
            continue
        scores, score_replicates = replicates(
            [[by_id[item_id] for item_id in shared_ids] for by_id in statistics],
            partial(metrics[suite][metric_name].aggregate, score_name),
            seed=derive_seed(seed, "arms", suite),
        )  # (2,) and (resamples, 2)
        higher_is_better = bool(learned_score.higher_is_better)
        values.append(forgetting.utility(scores, higher_is_better))
        resampled.append(forgetting.utility(score_replicates, higher_is_better))
        suites.append(suite)
        item_count += len(shared_ids)
    if not suites:
        return None
    resamples = min(map(len, resampled))
    points = np.stack(values, axis=-1)  # (2, tasks)
    value = float(_mean_intransigence(points))
    value_replicates = _mean_intransigence(np.stack([each[:resamples] for each in resampled], axis=-1))
    estimate = estimate_from_replicates(value, value_replicates, item_count, magnitude(points))
    return Intransigence(arm, display_name, tuple(suites), estimate)


def _mean_intransigence(pairs: np.ndarray) -> np.ndarray:
    """Return the intransigence of utilities (..., 2, tasks): after the task's own stage, and of the joint arm."""
    # `forgetting.intransigence` does not use the row of the base model.
    stages = np.stack([pairs[..., 0, :], pairs[..., 0, :]], axis=-2)
    return forgetting.intransigence(stages, pairs[..., 1, :], task_stage=[1] * pairs.shape[-1])


def _find_score(evaluation: Evaluation | None, metric: str, name: str) -> Score | None:
    scores = () if evaluation is None else evaluation.scores
    return next((score for score in scores if (score.metric, score.name) == (metric, name)), None)
