"""What a step does instead of ending the run: skip values that are not finite, and divide batches without memory."""

from __future__ import annotations

import gc
import math
import warnings
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, Trainer

from harness.errors import RunError
from harness.interfaces.mitigation import Mitigation
from harness.model.device import is_out_of_memory
from harness.training.collator import Collator
from harness.training.micro_batches import split_batch
from harness.training.step_log import StepLog

MAX_ROWS_NAMED = 16
"""Rows of a step that an error names."""


@dataclass(frozen=True)
class Tolerance:
    """Which failures of a step do not end a stage.

    Attributes:
        skipped_steps: Steps with a loss or gradient that is not finite that are skipped.
        halvings: How often micro-batches are divided in halves when memory runs out.
        warn: Called with one line for each such failure.
    """

    skipped_steps: int = 0
    halvings: int = 0
    warn: Callable[[str], None] = warnings.warn


class StepRecovery(Trainer):
    """The part of `StageTrainer` that handles failures of a step.

    Attributes:
        batch_parts: The number of parts into which each micro-batch is divided.
        step_batches: The micro-batches of the current step so far.
        step_is_skipped: Whether the last step changed no weight because a value was not finite.
        collator: See `StageTrainer`.
        step_log: See `StageTrainer`.
        loss_sums: See `StageTrainer`.
        mitigations: See `StageTrainer`.
    """

    collator: Collator
    step_log: StepLog
    loss_sums: dict[str, Tensor]
    mitigations: dict[str, Mitigation]

    activation_context: AbstractContextManager[Any] = nullcontext()
    """Entered for the forward and backward pass of each micro-batch, see `activation_offloading`."""

    tolerance = Tolerance()
    """Which failures of a step do not end the stage."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        """Pass all arguments to the Trainer."""
        super().__init__(*arguments, **options)
        self.batch_parts, self._halvings = 1, 0
        self.step_batches: list[dict[str, Tensor]] = []
        self.step_is_skipped = False

    def training_step(self, model: nn.Module, inputs: dict[str, Any], *arguments: Any, **options: Any) -> Tensor:
        """Add the gradient of a micro-batch, and return its loss.

        If the device has too little memory, micro-batches are divided in halves from then on, and the step begins
        again: its rows and its mean over all their tokens stay the same. Several processes cannot do so on their own.
        """
        self.step_batches.append(inputs)
        todo = [inputs]
        while True:
            try:
                losses = [self._divided_step(model, batch, *arguments, **options) for batch in todo]
                return losses[-1]
            except (MemoryError, RuntimeError) as error:
                if not is_out_of_memory(error) or not self._can_halve(todo):
                    raise
            # Outside of `except`, where the error would hold the tensors of the failed step.
            self._halvings += 1
            self.batch_parts *= 2
            self.tolerance.warn(
                f"{self._describe_step()}: out of memory; micro-batches are divided into {self.batch_parts} parts "
                "from now on, with the same rows in each step"
            )
            self._restart_step(model)
            todo = self.step_batches

    def _restart_step(self, model: nn.Module) -> None:
        """Forget the step so far."""
        model.zero_grad(set_to_none=True)
        self.loss_sums = {}
        for mitigation in self.mitigations.values():
            mitigation.on_step_restart(cast(PreTrainedModel, self.model))
        gc.collect()
        if self.args.device.type == "cuda":
            torch.cuda.empty_cache()

    def _divided_step(self, model: nn.Module, batch: dict[str, Any], *arguments: Any, **options: Any) -> Tensor:
        parts = [batch] if self.batch_parts == 1 else split_batch(batch, self.batch_parts)
        losses: list[Tensor] = []
        for part in parts:
            with self.activation_context:
                losses.append(super().training_step(model, part, *arguments, **options))
        return losses[0] if len(losses) == 1 else torch.stack(losses).sum()

    def _can_halve(self, batches: list[dict[str, Any]]) -> bool:
        """Return whether micro-batches may be divided further, and at least one of these can be."""
        if self.accelerator.num_processes > 1 or self._halvings >= self.tolerance.halvings:
            return False
        return any(
            len(split_batch(batch, 2 * self.batch_parts)) > len(split_batch(batch, self.batch_parts))
            for batch in batches
        )

    def skips_step(self, metrics: Mapping[str, float]) -> bool:
        """Return whether the step is skipped because a value is not finite.

        Raises:
            RunError: No more steps may be skipped.
        """
        name = next((name for name, value in metrics.items() if not math.isfinite(value)), None)
        if name is None:
            return False
        what = f"{name} is {metrics[name]}; the step trains {self._describe_rows()}"
        limit = self.tolerance.skipped_steps
        if self.step_log.skipped_steps >= limit or self.accelerator.scaler is not None:
            skipped = f"after {limit} skipped steps, " if limit else ""
            raise RunError(
                self._describe_step(),
                f"{skipped}{what}; it would destroy the weights",
                "lower train.learning_rate, set train.precision to 'float32', look for damaged rows, or raise "
                "train.skip_nonfinite",
            )
        self.step_log.skipped_steps += 1
        skipped = f"it is skipped ({self.step_log.skipped_steps} of at most {limit})"
        self.tolerance.warn(f"{self._describe_step()}: {what}; {skipped}")
        return True

    def _describe_step(self) -> str:
        return f"stage '{self.step_log.stage_name}', step {self.state.global_step + 1} of {self.state.max_steps}"

    def _describe_rows(self) -> str:
        """Return the ids of the rows of the current step, of all processes."""
        size = self.step_log.sequences_per_step
        begin = self.state.global_step * size
        sequences = [
            self.collator.sequences[index] for index in range(begin, min(begin + size, len(self.collator.sequences)))
        ]
        ids = [self.collator.rows[row].id for sequence in sequences for row in sequence]
        more = f" and {len(ids) - MAX_ROWS_NAMED} more" if len(ids) > MAX_ROWS_NAMED else ""
        return f"the rows {', '.join(ids[:MAX_ROWS_NAMED])}{more}"
