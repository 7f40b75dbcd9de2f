"""The base class of learning-rate schedules, named by `train.scheduler`. This module imports nothing heavy."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from harness.interfaces import result_checks
from harness.interfaces.guard import GuardedComponent, ResultCheck


class Scheduler(GuardedComponent):
    """The learning rate of each step, as a factor of `train.learning_rate`.

    The factor depends on the step alone, so a resumed stage has the same learning rates without any stored state.
    """

    guarded_methods: ClassVar[Mapping[str, ResultCheck | None]] = {"factor": result_checks.check_factor}
    required_members = ("factor",)

    def factor(self, step: int, *, steps: int, warmup_steps: int) -> float:
        """Return the factor of the learning rate at a step, at least 0.

        Args:
            step: The index of the step, from 0. It is also asked for `steps`, after the last step.
            steps: The stage's number of steps, at least 1.
            warmup_steps: The steps of the warm-up, see `train.warmup_ratio`; 0 to `steps`. `warmup_factor` is the usual
                one.
        """
        raise NotImplementedError


def warmup_factor(step: int, warmup_steps: int) -> float | None:
    """Return the factor of a step in the warm-up, (step + 1) / warmup_steps, so that every step trains.

    Args:
        step: The index of the step, from 0.
        warmup_steps: The steps of the warm-up.

    Returns:
        The factor in (0, 1]; None after the warm-up.
    """
    return (step + 1) / warmup_steps if step < warmup_steps else None
