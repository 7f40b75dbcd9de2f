"""Intransigence: how much less the stages of an arm learned than a joint run on all tasks, with its interval."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from harness.errors import HarnessError
from harness.interfaces.metric import Metric
from harness.report.finished_run import FinishedRun, load_run_json
from harness.report.paired_difference import align_items, item_groups, item_statistics
from harness.statistics.intervals import Estimate
from harness.statistics.item_statistics import score_function
from harness.statistics.seeds import Linearized, combine, linearize, pool_over_seeds
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
    arms: Mapping[str, Mapping[int, FinishedRun]], joint_arm: str, metrics: Mapping[str, Mapping[str, Metric]]
) -> tuple[Intransigence, ...]:
    """Compute the intransigence of every other arm by every score, over the items and seeds that both arms have.

    A task with different signatures is ignored. The interval is Student's t, with the jackknife over the items; see
    `pool_over_seeds` for several seeds.

    Args:
        arms: Name -> seed -> finished run.
        joint_arm: Name of an arm that trained on all tasks together and has a result.
        metrics: Suite -> metric name -> metric.

    Raises:
        HarnessError: The report of an arm is damaged.
    """
    results = []
    for arm, runs in arms.items():
        pairs = [(run, arms[joint_arm][seed]) for seed, run in runs.items() if seed in arms[joint_arm]]
        if arm == joint_arm or not pairs:
            continue
        for matrix in _load_matrices(pairs[0][0]):
            by_seed = [found for pair in pairs if (found := _run_intransigence(*pair, matrix, metrics)) is not None]
            if by_seed:
                value = pool_over_seeds([deficit for deficit, _ in by_seed]).estimate
                results.append(Intransigence(arm, matrix[2], by_seed[0][1], value))
    return tuple(results)


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


def _run_intransigence(
    run: FinishedRun,
    joint: FinishedRun,
    matrix: tuple[str, str, str, Mapping[str, int]],
    metrics: Mapping[str, Mapping[str, Metric]],
) -> tuple[Linearized, tuple[str, ...]] | None:
    """Return the intransigence of one run and its tasks; None if no task can be compared."""
    metric_name, score_name, _, taught_in_stage = matrix
    deficits: dict[str, Linearized] = {}
    for suite, stage in taught_in_stage.items():
        learned = next((evaluation for evaluation in run.evaluations[stage] if evaluation.suite == suite), None)
        final = joint.last_evaluation(suite)
        learned_score, final_score = (_find_score(each, metric_name, score_name) for each in (learned, final))
        if learned is None or final is None or learned_score is None or final_score is None:
            continue
        if learned_score.signature != final_score.signature:
            continue  # `not_compared_notes` reports it
        ids = align_items(learned, final).ids
        if not ids:
            continue
        aggregate = score_function(metrics[suite][metric_name], score_name)
        keys = [(suite, unit) for unit in item_groups(learned, ids) or ids]
        first, second = (
            linearize(item_statistics(scored, ids), aggregate, keys)
            for scored in ((learned, learned_score), (final, final_score))
        )
        sign = 1.0 if learned_score.higher_is_better else -1.0
        deficits[suite] = combine([(-sign, first), (sign, second)])
    if not deficits:
        return None
    return combine([(1 / len(deficits), deficit) for deficit in deficits.values()]), tuple(deficits)


def _find_score(evaluation: Evaluation | None, metric: str, name: str) -> Score | None:
    scores = () if evaluation is None else evaluation.scores
    return next((score for score in scores if (score.metric, score.name) == (metric, name)), None)
