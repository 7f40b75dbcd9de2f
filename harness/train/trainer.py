"""The one trainer: what an update is, whichever engine turns the wheel.

Knows the order of things within an update: the task's gradient, clipping, the pull of the mitigations, the optimizer.
An engine is a subclass; it may bring its own way to the token likelihoods, and nothing else.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, SequentialSampler
from transformers import PreTrainedModel, PreTrainedTokenizerBase, Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_callback import PrinterCallback, TrainerControl, TrainerState

from harness.contracts import Mitigation
from harness.errors import RunError
from harness.train.checkpoint import save_states
from harness.train.collate import Collator
from harness.train.log import StageLog
from harness.train.loss import model_inputs, nll_of_logits, summed_nll, trained


class StageTrainer(Trainer):
    """A Trainer whose batches, loss, pulls and records are ours; mixed into each engine.

    The loss is the summed negative log-likelihood of the trained tokens divided by their number in the whole update,
    over all its micro-batches and processes; so neither padding nor accumulation changes an update.
    """

    loss_is_scaled_for_ga: Any = True

    def __init__(
        self,
        *,
        model: PreTrainedModel,
        args: TrainingArguments,
        folder: Path,
        collator: Collator,
        tokenizer: PreTrainedTokenizerBase,
        mitigations: Mapping[str, Mitigation],
        log: StageLog,
        stage: str,
    ) -> None:
        super().__init__(model=model, args=args, data_collator=collator, processing_class=tokenizer, **self.extras())
        # transformers before 5.19 tells from this one whether to divide by the accumulation steps once more.
        self.model_accepts_loss_kwargs = True
        # Kept from the Trainer, which would rewrite the model's special tokens after it.
        self.processing_class, self.tokenizer_to_save = None, tokenizer
        self.collator, self.stage, self.records, self.checkpoints = collator, stage, log, folder
        self.mitigations = dict(sorted(mitigations.items(), key=lambda item: (item[1].order, item[0])))
        self.sums: dict[str, Tensor] = {}
        self.grad_norm: Tensor | float = math.nan
        self.remove_callback(PrinterCallback)
        self.add_callback(Update(self))

    @property
    def bare(self) -> PreTrainedModel:
        """The model as its weights' names know it, without what wraps it for several processes."""
        return cast(PreTrainedModel, self.model)

    def release(self) -> None:
        """Let go of the optimizer's state at once: trainer and callbacks hold each other, and the next stage needs
        the memory."""
        self.optimizer = self.lr_scheduler = None
        self.callback_handler.optimizer = self.callback_handler.lr_scheduler = None
        self.accelerator.free_memory()

    def extras(self) -> dict[str, Any]:
        """What this engine's constructor wants besides."""
        return {}

    # -- batches ------------------------------------------------------------------------------------------------------

    def get_train_dataloader(self) -> DataLoader[Any]:
        """The slots strictly in order; with several processes, batch by batch in turn."""
        slots: Dataset[int] = Indices(len(self.collator.slots))
        loader = DataLoader(
            slots,
            batch_size=self._train_batch_size,
            sampler=SequentialSampler(slots),  # type: ignore[arg-type]
            collate_fn=self.collator,
            pin_memory=self.args.dataloader_pin_memory,
        )
        return self.accelerator.prepare(loader)

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], Tensor]:
        """The micro-batches of one update, and how many tokens all processes train in it."""
        batches = [batch for _, batch in zip(range(num_batches), epoch_iterator, strict=False)]
        count = torch.stack([trained(batch["labels"]).sum() for batch in batches]).sum().to(device)
        return batches, self.accelerator.reduce(count, "sum")

    # -- loss ---------------------------------------------------------------------------------------------------------

    def summed_nll(self, model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        """Summed negative log-likelihood of a batch's trained tokens. model: as wrapped for several processes."""
        return summed_nll(model, self.bare, batch)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """The loss of a micro-batch, penalties of the batch included.

        A penalty is a mean over the micro-batch's trained tokens; weighted with their share of the update it becomes a
        mean over the update's, however the update is cut up. Multiplied by the number of processes, since their
        gradients are averaged.
        """
        here = trained(inputs["labels"]).sum()
        total = torch.as_tensor(here if num_items_in_batch is None else num_items_in_batch).clamp(min=1)
        readers = {name: mitigation for name, mitigation in self.mitigations.items() if mitigation.reads_logits}
        if readers:
            nll, penalties = self._with_logits(model, inputs, readers)
        else:
            nll, penalties = self.summed_nll(model, inputs), {}
        terms = {"loss": nll / total} | {f"penalty/{name}": p * (here / total) for name, p in penalties.items()}
        for name, term in terms.items():
            self.sums[name] = self.sums.get(name, 0.0) + term.detach()
        loss = torch.stack(list(terms.values())).sum() * self.accelerator.num_processes
        return (loss, None) if return_outputs else loss

    def _with_logits(
        self, model: nn.Module, batch: dict[str, Tensor], readers: Mapping[str, Mitigation]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        logits = model(**model_inputs(batch)).logits  # (B, T, V)
        found = {name: reader.batch_penalty(self.bare, batch, logits) for name, reader in readers.items()}
        return nll_of_logits(logits, batch["labels"]), {name: p.float() for name, p in found.items() if p is not None}

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """Nothing: no one reads it, and counting walks over all weights at every micro-batch."""
        return 0

    # -- update -------------------------------------------------------------------------------------------------------

    def _clip_grad_norm(self, model: nn.Module) -> Any:
        self.grad_norm = super()._clip_grad_norm(model)
        return self.grad_norm

    def before_optimizer(self) -> dict[str, float]:
        """Check the update's loss and gradient, and let the weight pulls add to it. Returns what is to be logged."""
        names = list(self.sums)
        values = torch.stack([self.sums[name].float() for name in names])
        values = self.accelerator.reduce(values, "sum")
        logged = dict(zip(names, values.tolist(), strict=True)) | {"grad_norm": float(self.grad_norm)}
        self.sums = {}
        self._refuse_unless_finite(logged)
        with torch.no_grad():
            for name, mitigation in self.mitigations.items():
                pulled = mitigation.weight_pull(self.bare)
                if pulled is not None:
                    key = f"penalty/{name}"
                    logged[key] = logged.get(key, 0.0) + float(pulled)
        return logged

    def _refuse_unless_finite(self, values: Mapping[str, float]) -> None:
        # Loss scaling meets infinite gradients by design: it skips the update and tries a smaller scale.
        wrong = [n for n, v in values.items() if not math.isfinite(v) and not (n == "grad_norm" and self.args.fp16)]
        if wrong:
            raise RunError(
                f"stage '{self.stage}', update {self.state.global_step + 1} of {self.state.max_steps}",
                f"{wrong[0]} is {values[wrong[0]]}, so the weights would be lost",
                "lower train.learning_rate, set train.precision to 'float32', or look for damaged rows",
            )

    # -- checkpoints --------------------------------------------------------------------------------------------------

    def _save_checkpoint(self, *arguments: Any, **options: Any) -> None:
        super()._save_checkpoint(*arguments, **options)
        if self.args.should_save:
            folder = self.checkpoints / f"checkpoint-{self.state.global_step}"
            self.tokenizer_to_save.save_pretrained(str(folder))
            (folder / "README.md").unlink(missing_ok=True)  # peft's model card, all placeholders
            save_states(self.mitigations, folder)

    def create_model_card(self, *arguments: Any, **options: Any) -> None:
        """Nothing: a checkpoint is no publication."""


class Update(TrainerCallback):
    """What happens around the optimizer's step; `on_pre_optimizer_step` comes after clipping."""

    def __init__(self, trainer: StageTrainer) -> None:
        self.trainer = trainer
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
        rate = float(self.trainer.lr_scheduler.get_last_lr()[0])  # type: ignore[union-attr]
        self.pending = (rate, self.trainer.before_optimizer())

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **rest: Any) -> None:
        """Write the update down."""
        self.trainer.records.update(*self.pending)


class Indices(Dataset[int]):
    """The numbers from 0 to `size` - 1, as a data set."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> int:
        return index
