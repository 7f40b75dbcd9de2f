"""Forgetting measures of continual learning, as functions of one matrix: stage × task, the base model first.

In every matrix here higher is better. A metric for which lower is better enters with its sign changed (`utility`).
More forgetting is therefore a larger `forgetting` and a smaller `backward_transfer` for every metric.

R has the shape (..., stages + 1, tasks):

                 task 1   task 2   …
    R[0]  base   R[0][0]  R[0][1]
    R[1]         R[1][0]  R[1][1]      R[i][j]: score on task j after stage i
    R[2]         …

`task_stage` gives the stage, from 1, in which each task is learned. By default task j is learned in stage j, as in the
papers. Leading axes are other matrices; every function keeps them. A NaN makes every number that depends on it NaN.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import numpy as np

from harness.types import ROUNDING

Array = np.ndarray
TaskStage = Sequence[int] | None


def utility(values: Array, higher_is_better: bool) -> Array:
    """Return the scores such that higher is better: NLL, perplexity and TER change their sign."""
    return values if higher_is_better else -values


def average_accuracy(R: Array, task_stage: TaskStage = None) -> Array:  # noqa: N803  the field's own name
    """Return ACC: the mean over tasks after the last stage (Lopez-Paz & Ranzato, 2017, arXiv:1706.08840)."""
    _validated_task_stages(R, task_stage)
    return _mean(R[..., -1, :])


def learning_accuracy(R: Array, task_stage: TaskStage = None) -> Array:  # noqa: N803
    """Return the mean over tasks of the score right after the task's stage (Riemer et al., 2018, arXiv:1810.11910)."""
    return _mean(_score_when_learned(R, task_stage))


def backward_transfer(R: Array, task_stage: TaskStage = None) -> Array:  # noqa: N803
    """Return BWT: the mean change of each earlier stage's task since that stage (arXiv:1706.08840).

    Negative values mean forgetting.
    """
    return _mean_over_earlier_tasks(R[..., -1, :] - _score_when_learned(R, task_stage), R, task_stage)


def forward_transfer(R: Array, task_stage: TaskStage = None) -> Array:  # noqa: N803
    """Return FWT: the mean score of each later stage's task just before that stage, minus the base model's score.

    As in arXiv:1706.08840, but relative to the base model instead of a randomly initialized one.
    """
    stages = _validated_task_stages(R, task_stage)
    later = [j for j, stage in enumerate(stages) if stage >= 2]
    if not later:
        return np.full(R.shape[:-2], np.nan)
    return _mean(np.stack([R[..., stages[j] - 1, j] - R[..., 0, j] for j in later], axis=-1))


def forgetting(R: Array, task_stage: TaskStage = None) -> Array:  # noqa: N803
    """Return forgetting: for each earlier stage's task the best score up to the last stage but one, minus the last.

    The best is taken from the task's own stage on (Chaudhry et al., 2018, arXiv:1801.10112). The result is the mean
    over these tasks. It is negative when the last stage is the best one.
    """
    return _mean_over_earlier_tasks(
        _best_since_learned(R, task_stage, including_last=False) - R[..., -1, :], R, task_stage
    )


def forgetting_since_learned(R: Array, task_stage: TaskStage = None) -> Array:  # noqa: N803
    """Return Avalanche's forgetting: for each earlier stage's task the score right after that stage, minus the last.

    It is the negative of `backward_transfer`.
    """
    return _mean_over_earlier_tasks(_score_when_learned(R, task_stage) - R[..., -1, :], R, task_stage)


def forgetting_from_best(R: Array, task_stage: TaskStage = None) -> Array:  # noqa: N803
    """Return Mammoth's forgetting: for each earlier stage's task the best score since that stage, minus the last.

    The last score is included in the best, so the result is never negative.
    """
    return _mean_over_earlier_tasks(
        _best_since_learned(R, task_stage, including_last=True) - R[..., -1, :], R, task_stage
    )


def general_ability_delta(general: Array) -> Array:
    """Return the mean over general suites of the last score minus the base model's.

    The measure is from TRACE (arXiv:2310.06762, section 4.2).

    Args:
        general: Scores of the general suites, (..., stages + 1, suites).
    """
    return _mean(general[..., -1, :] - general[..., 0, :])


def relative_forgetting(general: Array) -> Array:
    """Return FG in percent: the mean over suites and stages of (base − stage) / |base|.

    The measure is from Luo et al. (2023, arXiv:2308.08747), for scores that are positive for the base model, as
    accuracies are. The absolute value keeps a loss positive for scores whose sign was changed.

    Args:
        general: Scores of the general suites, (..., stages + 1, suites).
    """
    base = general[..., :1, :]
    with np.errstate(divide="ignore", invalid="ignore"):
        relative_loss = (base - general[..., 1:, :]) / np.abs(base)
    return 100 * _mean(np.where(np.isfinite(relative_loss), relative_loss, np.nan), (-2, -1))


def fraction_recovered(method: float, naive: float, naive_stderr: float) -> float | None:
    """Return the fraction of the naive run's forgetting that a mitigation prevented: 1 − method / naive.

    Args:
        method: Forgetting with the mitigation; positive for a loss.
        naive: Forgetting without it.
        naive_stderr: Standard error of `naive`.

    Returns:
        The fraction, or None unless `naive` exceeds two standard errors: otherwise there is nothing to recover.
    """
    if not naive > 2 * naive_stderr:
        return None
    return 1 - method / naive


class Summary(Protocol):
    """A function that computes one number from a stage × task matrix."""

    def __call__(self, R: Array, task_stage: TaskStage = None) -> Array:  # noqa: N803
        """Return the number for each replicate of R."""
        ...


SUMMARIES: Mapping[str, Summary] = {
    "average_accuracy": average_accuracy,
    "learning_accuracy": learning_accuracy,
    "backward_transfer": backward_transfer,
    "forward_transfer": forward_transfer,
    "forgetting": forgetting,
    "forgetting_since_learned": forgetting_since_learned,
    "forgetting_from_best": forgetting_from_best,
}
"""Summaries of a matrix of tasks. A mean over earlier or later tasks is NaN when there are none."""

GENERAL_SUMMARIES: Mapping[str, Callable[[Array], Array]] = {
    "general_ability_delta": general_ability_delta,
    "relative_forgetting": relative_forgetting,
}
"""Summaries of a matrix of general suites, independent of the stage that taught them."""


def contrast_of_task(summary: str, scores: Array, task_stage: int) -> tuple[int, int | None]:
    """Return the stages whose difference a summary of `SUMMARIES` takes for one task.

    The summary of several tasks is the mean over them of scores[a] − scores[b].

    Args:
        summary: Its name.
        scores: Utilities of the task, (stages + 1,), the base first.
        task_stage: The stage, from 1, in which the task is learned.

    Returns:
        (a, b). b is None if the summary is the score of stage a itself. Of stages that are equal up to rounding, the
        best is the first.
    """
    last = len(scores) - 1

    def best(end: int) -> int:
        since_learned = scores[task_stage:end]
        slack = ROUNDING * float(np.abs(since_learned).max())
        return task_stage + int(np.argmax(since_learned >= since_learned.max() - slack))

    contrasts: dict[str, Callable[[], tuple[int, int | None]]] = {
        "average_accuracy": lambda: (last, None),
        "learning_accuracy": lambda: (task_stage, None),
        "backward_transfer": lambda: (last, task_stage),
        "forward_transfer": lambda: (task_stage - 1, 0),
        "forgetting": lambda: (best(last), last),
        "forgetting_since_learned": lambda: (task_stage, last),
        "forgetting_from_best": lambda: (best(last + 1), last),
    }
    return contrasts[summary]()


def pareto(points: Sequence[tuple[float, float]]) -> tuple[int, ...]:
    """Return the indices of the Pareto-efficient points.

    A point is efficient if no other point is at least as good on both axes and better on one. Points that differ only
    by rounding are equal, and equal points are efficient together. A point with a NaN is never efficient.

    Args:
        points: (gain, forgetting) of each point: more gain and less forgetting are better.
    """

    def dominates(point: tuple[float, float], other: tuple[float, float]) -> bool:
        more_gain, less_forgetting = point[0] - other[0], other[1] - point[1]
        slack = tuple(ROUNDING * max(abs(point[axis]), abs(other[axis])) for axis in (0, 1))
        return (
            more_gain >= -slack[0]
            and less_forgetting >= -slack[1]
            and (more_gain > slack[0] or less_forgetting > slack[1])
        )

    measured = [index for index, point in enumerate(points) if not any(map(np.isnan, point))]
    return tuple(i for i in measured if not any(dominates(points[j], points[i]) for j in measured))


def _validated_task_stages(R: Array, task_stage: TaskStage) -> Sequence[int]:  # noqa: N803
    stages = range(1, R.shape[-1] + 1) if task_stage is None else task_stage
    if len(stages) != R.shape[-1] or not all(1 <= stage < R.shape[-2] for stage in stages):
        rows, tasks = R.shape[-2:]
        raise ValueError(f"a matrix of {rows - 1} stages and {tasks} tasks does not match task_stage {list(stages)}")
    return stages


def _score_when_learned(R: Array, task_stage: TaskStage) -> Array:  # noqa: N803
    """Return the score of each task right after its stage, (..., tasks)."""
    return np.stack([R[..., stage, j] for j, stage in enumerate(_validated_task_stages(R, task_stage))], axis=-1)


def _best_since_learned(R: Array, task_stage: TaskStage, *, including_last: bool) -> Array:  # noqa: N803
    """Return the best score of each task since its stage, (..., tasks)."""
    end = R.shape[-2] if including_last else R.shape[-2] - 1
    # A task of the last stage has no later score; `_mean_over_earlier_tasks` drops its column.
    columns = [
        R[..., stage : max(end, stage + 1), j].max(-1) for j, stage in enumerate(_validated_task_stages(R, task_stage))
    ]
    return np.stack(columns, axis=-1)


def _mean_over_earlier_tasks(by_task: Array, R: Array, task_stage: TaskStage) -> Array:  # noqa: N803
    earlier = [j for j, stage in enumerate(_validated_task_stages(R, task_stage)) if stage < R.shape[-2] - 1]
    if not earlier:
        return np.full(by_task.shape[:-1], np.nan)
    return _mean(by_task[..., earlier])


def _mean(values: Array, axis: int | tuple[int, ...] = -1) -> Array:
    mean: Array = values.mean(axis)
    return mean
