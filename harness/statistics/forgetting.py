"""What continual learning calls forgetting, as functions of one matrix: stage × task, the base model first.

Knows numbers, not where they come from. In every matrix here higher is better: a metric for which lower is better
enters with its sign turned (`utility`), so that "more forgotten" is always a positive number of `forgetting` and a
negative one of `backward_transfer`.

R has the shape (..., stages + 1, tasks): R[0] is the base model, R[i][j] the score on task j after stage i. `own` names
the stage, from 1, that each task was learned in; left out, task j is learned in stage j, and R is as square as in the
papers. Leading axes are replicates of a bootstrap; every function keeps them. A NaN makes what depends on it NaN.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import numpy as np

from harness.types import ROUNDING

Array = np.ndarray
TaskStage = Sequence[int] | None


def utility(values: Array, higher_is_better: bool) -> Array:
    """The scores as numbers of which more is better: NLL, perplexity and TER change their sign."""
    return values if higher_is_better else -values


def average_accuracy(R: Array, task_stage: TaskStage = None) -> Array:  # noqa: N803  the field's own name
    """ACC: the mean over tasks after the last stage (Lopez-Paz & Ranzato, 2017, arXiv:1706.08840)."""
    _validated_task_stages(R, task_stage)
    return R[..., -1, :].mean(-1)


def learning_accuracy(R: Array, task_stage: TaskStage = None) -> Array:  # noqa: N803
    """The mean over tasks of the score right after the task's own stage (Riemer et al., 2018, arXiv:1810.11910)."""
    return _score_when_learned(R, task_stage).mean(-1)


def backward_transfer(R: Array, task_stage: TaskStage = None) -> Array:  # noqa: N803
    """BWT: how each task of an earlier stage changed since that stage (arXiv:1706.08840). Negative: forgotten."""
    return _mean_over_earlier_tasks(R[..., -1, :] - _score_when_learned(R, task_stage), R, task_stage)


def forward_transfer(R: Array, task_stage: TaskStage = None) -> Array:  # noqa: N803
    """FWT: each task of a later stage just before that stage, less the base model on it.

    As in arXiv:1706.08840, but against the base model, which knows something, and not a random one.
    """
    stages = _validated_task_stages(R, task_stage)
    later = [j for j, stage in enumerate(stages) if stage >= 2]
    if not later:
        return np.full(R.shape[:-2], np.nan)
    return np.stack([R[..., stages[j] - 1, j] - R[..., 0, j] for j in later], axis=-1).mean(-1)


def forgetting(R: Array, task_stage: TaskStage = None) -> Array:  # noqa: N803
    """Each task of an earlier stage: its best score from that stage to the last but one, less the last one.

    Chaudhry et al., 2018, arXiv:1801.10112. Negative when the last stage is the best one.
    """
    return _mean_over_earlier_tasks(
        _best_since_learned(R, task_stage, including_last=False) - R[..., -1, :], R, task_stage
    )


def forgetting_since_learned(R: Array, task_stage: TaskStage = None) -> Array:  # noqa: N803
    """Each task of an earlier stage: its score right after that stage, less the last one: Avalanche's forgetting.

    The negative of `backward_transfer`.
    """
    return _mean_over_earlier_tasks(_score_when_learned(R, task_stage) - R[..., -1, :], R, task_stage)


def forgetting_from_best(R: Array, task_stage: TaskStage = None) -> Array:  # noqa: N803
    """Each task of an earlier stage: its best score of all since then, the last one included, less the last one.

    What Mammoth calls forgetting; never negative.
    """
    return _mean_over_earlier_tasks(
        _best_since_learned(R, task_stage, including_last=True) - R[..., -1, :], R, task_stage
    )


def intransigence(R: Array, joint: Array, task_stage: TaskStage = None) -> Array:  # noqa: N803
    """What a run on all tasks together reaches on each task, less what the task's own stage reached (arXiv:1801.10112).

    joint: (..., tasks). Positive: the stages learned less.
    """
    return (joint - _score_when_learned(R, task_stage)).mean(-1)


def general_ability_delta(general: Array) -> Array:
    """The mean over general suites of the last score less the base model's (TRACE, arXiv:2310.06762, section 4.2).

    general: (..., stages + 1, suites).
    """
    return (general[..., -1, :] - general[..., 0, :]).mean(-1)


def relative_forgetting(general: Array) -> Array:
    """FG in per cent: the mean over suites and stages of (base − stage) / base (Luo et al., 2023, arXiv:2308.08747).

    general: (..., stages + 1, suites), of scores that are positive for the base model, as accuracies are. For a score
    whose sign was turned the denominator is taken without its sign, so that losing is positive here too.
    """
    base = general[..., :1, :]
    with np.errstate(divide="ignore", invalid="ignore"):
        lost = (base - general[..., 1:, :]) / np.abs(base)
    return 100 * np.where(np.isfinite(lost), lost, np.nan).mean((-2, -1))


def fraction_recovered(method: float, naive: float, naive_stderr: float) -> float | None:
    """The share of the naive run's forgetting that a mitigation prevented: 1 − method / naive.

    method, naive: forgetting of the two, positive where something was lost. None unless the naive run's exceeds two of
    its standard errors: there would be nothing to recover.
    """
    if not naive > 2 * naive_stderr:
        return None
    return 1 - method / naive


class Summary(Protocol):
    """A number drawn from a stage × task matrix."""

    def __call__(self, R: Array, task_stage: TaskStage = None) -> Array: ...  # noqa: N803


SUMMARIES: Mapping[str, Summary] = {
    "average_accuracy": average_accuracy,
    "learning_accuracy": learning_accuracy,
    "backward_transfer": backward_transfer,
    "forward_transfer": forward_transfer,
    "forgetting": forgetting,
    "forgetting_since_learned": forgetting_since_learned,
    "forgetting_from_best": forgetting_from_best,
}
"""What a matrix of tasks comes to; those over earlier or later tasks are NaN where there are none."""

GENERAL_SUMMARIES: Mapping[str, Callable[[Array], Array]] = {
    "general_ability_delta": general_ability_delta,
    "relative_forgetting": relative_forgetting,
}
"""What a matrix of general suites comes to, whichever stage taught them."""


def pareto(points: Sequence[tuple[float, float]]) -> tuple[int, ...]:
    """The indices of (gain, forgotten) that no other point beats: none gains as much and forgets less, or the reverse.

    gain: more is better. forgotten: less is better. A point with a NaN is never among them; equal points all are, and
    points are equal that differ by rounding alone.
    """

    def beats(one: tuple[float, float], other: tuple[float, float]) -> bool:
        gain, forgotten = one[0] - other[0], other[1] - one[1]
        slack = tuple(ROUNDING * max(abs(one[axis]), abs(other[axis])) for axis in (0, 1))
        return gain >= -slack[0] and forgotten >= -slack[1] and (gain > slack[0] or forgotten > slack[1])

    known = [index for index, point in enumerate(points) if not any(map(np.isnan, point))]
    return tuple(i for i in known if not any(beats(points[j], points[i]) for j in known))


def _validated_task_stages(R: Array, task_stage: TaskStage) -> Sequence[int]:  # noqa: N803
    stages = range(1, R.shape[-1] + 1) if task_stage is None else task_stage
    if len(stages) != R.shape[-1] or not all(1 <= stage < R.shape[-2] for stage in stages):
        rows, tasks = R.shape[-2:]
        raise ValueError(
            f"{rows - 1} stages and {tasks} tasks do not fit to tasks learned in the stages {list(stages)}"
        )
    return stages


def _score_when_learned(R: Array, task_stage: TaskStage) -> Array:  # noqa: N803
    """(..., tasks): each task right after its own stage."""
    return np.stack([R[..., stage, j] for j, stage in enumerate(_validated_task_stages(R, task_stage))], axis=-1)


def _best_since_learned(R: Array, task_stage: TaskStage, *, including_last: bool) -> Array:  # noqa: N803
    """(..., tasks): each task's best since its own stage."""
    end = R.shape[-2] if including_last else R.shape[-2] - 1
    # A task of the last stage has none in between; `_mean_of_earlier` leaves its column out.
    columns = [
        R[..., stage : max(end, stage + 1), j].max(-1) for j, stage in enumerate(_validated_task_stages(R, task_stage))
    ]
    return np.stack(columns, axis=-1)


def _mean_over_earlier_tasks(by_task: Array, R: Array, task_stage: TaskStage) -> Array:  # noqa: N803
    earlier = [j for j, stage in enumerate(_validated_task_stages(R, task_stage)) if stage < R.shape[-2] - 1]
    if not earlier:
        return np.full(by_task.shape[:-1], np.nan)
    return by_task[..., earlier].mean(-1)
