"""What the trainer hangs its update on: the callback around the optimizer's step, and the slots as a data set."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Protocol

from torch.utils.data import Dataset
from transformers import TrainerCallback, TrainingArguments
from transformers.trainer_callback import TrainerControl, TrainerState

from harness.train.log import StageLog

Check = Callable[[int], bool]
"""Called with the number of an update that is done; true: the stage ends with it."""


class Steps(Protocol):
    """What the callback needs of the trainer."""

    records: StageLog
    lr_scheduler: Any

    def before_optimizer(self) -> dict[str, float]: ...

    def after_optimizer(self, learning_rate: float) -> None: ...


class Update(TrainerCallback):
    """What happens around the optimizer's step; `on_pre_optimizer_step` comes after clipping."""

    def __init__(self, trainer: Steps, check: Check | None = None) -> None:
        """check: see `train`."""
        self.trainer, self.check = trainer, check
        self.pending: tuple[float, dict[str, float]] = (math.nan, {})

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **rest: Any
    ) -> None:
        """Start the log's clock."""
        self.trainer.records.begin()

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **rest: Any
    ) -> None:
        """Let the mitigations pull, and remember the learning rate that this update is made with."""
        rate = float(self.trainer.lr_scheduler.get_last_lr()[0])
        self.pending = (rate, self.trainer.before_optimizer())

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **rest: Any
    ) -> None:
        """Let the mitigations look at what the update made of the weights."""
        self.trainer.after_optimizer(self.pending[0])

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **rest: Any) -> None:
        """Write the update down, and ask whether it was the last one."""
        self.trainer.records.update(*self.pending)
        if self.check is not None and self.check(state.global_step):
            control.should_training_stop = True


class Indices(Dataset[int]):
    """The numbers from 0 to `size` - 1, as a data set."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> int:
        return index
