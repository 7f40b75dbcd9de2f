"""The part of `StageTrainer` that trains weights which are divided among the processes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn
from transformers import Trainer

from harness.training.sharded_weights import ShardedWeights, clip_shards

OPTIMIZER_FILE, SCHEDULER_FILE = "optimizer.pt", "scheduler.pt"
"""The files of transformers in a checkpoint: those of a sharded stage have the content of one that is not sharded."""


def unwrapped_optimizer(optimizer: Any) -> torch.optim.Optimizer:
    """Return an optimizer without accelerate's wrapper."""
    return cast(torch.optim.Optimizer, getattr(optimizer, "optimizer", optimizer))


class ShardedTraining(Trainer):
    """The Trainer, for a model as it is or with sharded weights.

    Attributes:
        shards: The sharded weights; None: the model is not sharded.
    """

    shards: ShardedWeights | None = None

    def use_shards(self, shards: ShardedWeights) -> None:
        """Train sharded weights. Call it before `train`."""
        self.shards = shards
        prepare_model = self.accelerator.prepare_model

        def prepare_without_wrapper(model: nn.Module, *arguments: Any, **options: Any) -> nn.Module:
            prepared: nn.Module = prepare_model(model, device_placement=False, evaluation_mode=True)
            return prepared

        self.accelerator.prepare_model = prepare_without_wrapper

    @contextmanager
    def plain_weights(self) -> Iterator[None]:
        """Within the context, the model has all its weights. Every process enters it."""
        with nullcontext() if self.shards is None else self.shards.gathered():
            yield

    def _clip_grad_norm(self, model: nn.Module) -> Any:
        if self.shards is not None:
            return clip_shards(model.parameters(), self.args.max_grad_norm)
        base: Any = super()
        return base._clip_grad_norm(model)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if self.shards is None:
            super()._save_optimizer_and_scheduler(output_dir)
            return
        state = self.shards.gather_state(unwrapped_optimizer(self.optimizer).state_dict())
        if self.args.should_save:
            torch.save(state, Path(output_dir) / OPTIMIZER_FILE)
            torch.save(cast(Any, self.lr_scheduler).state_dict(), Path(output_dir) / SCHEDULER_FILE)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if self.shards is None or checkpoint is None:
            super()._load_optimizer_and_scheduler(checkpoint)
            return
        optimizer = unwrapped_optimizer(self.optimizer)
        state = torch.load(Path(checkpoint) / OPTIMIZER_FILE, map_location="cpu", weights_only=True)
        optimizer.load_state_dict(self.shards.shard_state(state, optimizer))
        schedule = torch.load(Path(checkpoint) / SCHEDULER_FILE, map_location="cpu", weights_only=True)
        cast(Any, self.lr_scheduler).load_state_dict(schedule)
