"""What the stages of an arm learned less of than a run on all tasks together: intransigence, with its interval.

Knows finished runs and the stage that each of their tasks was learned in.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
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
    """One score of one arm: the mean over its tasks of what the joint arm has at its end, less what the arm had right
    after the task's own stage (Chaudhry et al., 2018, arXiv:1801.10112).

    suites: the tasks. value: in the score's unit; positive, whatever the metric's direction, when the stages learned
    less than the joint arm did.
    """

    arm: str
    score: str
    suites: tuple[str, ...]
    value: Estimate


def compute_intransigence(
    arms: Mapping[str, FinishedRun], joint_arm: str, metrics: Mapping[str, Mapping[str, Metric]], *, seed: int
) -> tuple[Intransigence, ...]:
    """The intransigence of every other arm, score by score, over the items that both were measured on.

    joint_arm: an arm that has a result. Items are resampled suite by suite, the same ones for both.
    A task that they did not measure alike is left out. Raises HarnessError when an arm's report is damaged.
    """
    made = []
    for arm, run in arms.items():
        if arm != joint_arm:
            for matrix in _load_matrices(run):
                found = _arm_intransigence(arm, run, arms[joint_arm], matrix, metrics, seed)
                if found is not None:
                    made.append(found)
    return tuple(made)


def _load_matrices(run: FinishedRun) -> list[tuple[str, str, str, dict[str, int]]]:
    """(metric, score, what it is called, suite -> the stage whose task it is) of each score of a run."""
    told: Mapping[str, Any] = load_run_json(run.folder, "report.json")
    try:
        return [
            (
                str(one["metric"]),
                str(one["score"]),
                str(one.get("called") or one["score"]),
                {suite: int(at) for suite, at in zip(one["suites"], one["learned"], strict=True) if at is not None},
            )
            for one in told["forgetting"]
        ]
    except (KeyError, TypeError, ValueError) as error:
        what = f"is no report of a run ({type(error).__name__}: {error})"
        raise HarnessError(str(run.folder / "report.json"), what, "run the arm again") from error


def _arm_intransigence(
    arm: str,
    run: FinishedRun,
    joint: FinishedRun,
    matrix: tuple[str, str, str, Mapping[str, int]],
    metrics: Mapping[str, Mapping[str, Metric]],
    seed: int,
) -> Intransigence | None:
    metric, name, called, learned = matrix
    values, drawn, suites, items = [], [], [], 0
    for suite, stage in learned.items():
        last = joint.last_evaluation(suite)
        own = next((one for one in run.evaluations[stage] if one.suite == suite), None)
        scores = [_find_score(one, metric, name) for one in (own, last)]
        if own is None or last is None or scores[0] is None or scores[1] is None:
            continue
        if scores[0].signature != scores[1].signature:
            continue  # two numbers of one name; `unshared` tells of it
        sides = [
            {item.id: vector for item, vector in zip(one.items, score.statistics, strict=True)}
            for one, score in ((own, scores[0]), (last, scores[1]))
        ]
        shared = [key for key in sides[0] if key in sides[1]]
        if not shared:
            continue
        instance = metrics[suite][metric]
        point, repeats = replicates(
            [[side[key] for key in shared] for side in sides],
            lambda total, instance=instance: instance.aggregate(name, total),  # type: ignore[misc]
            seed=derive_seed(seed, "arms", suite),
        )
        better = bool(scores[0].higher_is_better)
        values.append(forgetting.utility(point, better))
        drawn.append(forgetting.utility(repeats, better))
        suites.append(suite)
        items += len(shared)
    if not suites:
        return None
    resamples = min(len(one) for one in drawn)
    points = np.stack(values, axis=-1)
    value = _mean_intransigence(points)
    repeated = _mean_intransigence(np.stack([one[:resamples] for one in drawn], axis=-1))
    return Intransigence(
        arm, called, tuple(suites), estimate_from_replicates(float(value), repeated, items, magnitude(points))
    )


def _mean_intransigence(pairs: np.ndarray) -> np.ndarray:
    """pairs: (..., 2, tasks), right after the task's own stage and of the joint arm, as utilities."""
    # The base model's row plays no part in it.
    stages = np.stack([pairs[..., 0, :], pairs[..., 0, :]], axis=-2)
    return forgetting.intransigence(stages, pairs[..., 1, :], task_stage=[1] * pairs.shape[-1])


def _find_score(evaluation: Evaluation | None, metric: str, name: str) -> Score | None:
    scores = () if evaluation is None else evaluation.scores
    return next((score for score in scores if (score.metric, score.name) == (metric, name)), None)
