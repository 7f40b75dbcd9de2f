"""The steps of a stage after which a checkpoint is written or the model is evaluated: every n steps or n epochs."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from harness.types import StageDataset


def checkpoint_steps(data: StageDataset, processes: int = 1) -> tuple[int, ...]:
    """Return the steps after which a checkpoint is written, ascending. The last step of the stage is one of them.

    Args:
        data: The stage.
        processes: The processes that share the training.

    Returns:
        Empty without `save_steps` and `save_epochs`.
    """
    train, steps = data.stage.train, data.count_steps(processes)
    due = set(_due_steps(data, train.get("save_steps"), train.get("save_epochs"), processes))
    return tuple(sorted(due | {steps})) if due or saves_checkpoints(train) else ()


def evaluation_steps(data: StageDataset, processes: int = 1) -> tuple[int, ...]:
    """Return the steps after which the model is evaluated within the stage, ascending. Arguments as above."""
    train = data.stage.train
    return tuple(sorted(set(_due_steps(data, train.get("evaluate_steps"), train.get("evaluate_epochs"), processes))))


def saves_checkpoints(train: Mapping[str, Any]) -> bool:
    """Return whether a stage with these settings writes checkpoints."""
    return train.get("save_steps") is not None or train.get("save_epochs") is not None


def evaluates_within(train: Mapping[str, Any]) -> bool:
    """Return whether a stage with these settings is evaluated before its end."""
    return train.get("evaluate_steps") is not None or train.get("evaluate_epochs") is not None


def _due_steps(
    data: StageDataset, every_steps: int | None, every_epochs: float | None, processes: int
) -> Iterator[int]:
    """Yield the steps within the stage that are due; some may occur twice.

    Step k of an epoch is the first one that has trained the fraction of the epoch's sequences.
    """
    steps = data.count_steps(processes)
    if every_steps is not None:
        yield from range(every_steps, steps + 1, every_steps)
    if every_epochs is None:
        return
    train = data.stage.train
    sequences_per_step = train["batch_size"] * train["accumulation"] * processes
    bounds = (0, *data.epoch_ends)
    epochs = len(data.epoch_ends)
    for index in range(1, math.floor(round(epochs / every_epochs, 6)) + 1):
        position = round(index * every_epochs, 6)  # in epochs
        epoch = min(math.ceil(position), epochs) - 1
        sequences = bounds[epoch] + (position - epoch) * (bounds[epoch + 1] - bounds[epoch])
        step = math.ceil(round(sequences / sequences_per_step, 6))
        if 1 <= step <= steps:
            yield step
