"""The one trainer: what an update is, whichever engine turns the wheel.

Knows the order of things within an update: the task's gradient, clipping and the pulls of the mitigations before or
after it, the optimizer, what the mitigations do with the weights then.
An engine is a subclass; it may bring its own way to the token likelihoods, and nothing else.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, SequentialSampler
from transformers import PreTrainedModel, PreTrainedTokenizerBase, Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_callback import PrinterCallback, TrainerControl, TrainerState

from harness.errors import RunError
from harness.interfaces.mitigation import Mitigation
from harness.training import checkpoint
from harness.training.collator import Collator
from harness.training.loss import nll_from_logits, summed_nll, target_logits, target_mask
from harness.training.step_log import StepLog
from harness.utils.silence import silence_libraries

StopCheck = Callable[[int], bool]
"""Called with the number of an update that is done; true: the stage ends with it."""


class OptimizerStepHooks(Protocol):
    """What the callback needs of the trainer."""

    step_log: StepLog
    lr_scheduler: Any

    def before_optimizer_step(self) -> dict[str, float]: ...

    def after_optimizer_step(self, learning_rate: float) -> None: ...


class StepCallback(TrainerCallback):
    """What happens around the optimizer's step; `on_pre_optimizer_step` comes after clipping."""

    def __init__(self, trainer: OptimizerStepHooks, stop_check: StopCheck | None = None) -> None:
        """stop_check: see `train_stage`."""
        self.trainer, self.stop_check = trainer, stop_check
        self.pending: tuple[float, dict[str, float]] = (math.nan, {})

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **rest: Any
    ) -> None:
        """Start the log's clock."""
        self.trainer.step_log.start()

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **rest: Any
    ) -> None:
        """Let the mitigations pull, and remember the learning rate that this update is made with."""
        rate = float(self.trainer.lr_scheduler.get_last_lr()[0])
        self.pending = (rate, self.trainer.before_optimizer_step())

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **rest: Any
    ) -> None:
        """Let the mitigations look at what the update made of the weights."""
        self.trainer.after_optimizer_step(self.pending[0])

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **rest: Any) -> None:
        """Write the update down, and ask whether it was the last one."""
        self.trainer.step_log.log_step(*self.pending)
        if self.stop_check is not None and self.stop_check(state.global_step):
            control.should_training_stop = True


class IndexDataset(Dataset[int]):
    """The numbers from 0 to `size` - 1, as a data set."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> int:
        return index


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
        checkpoint_folder: Path,
        collator: Collator,
        tokenizer: PreTrainedTokenizerBase,
        mitigations: Mapping[str, Mitigation],
        step_log: StepLog,
        stage_name: str,
        fingerprint: Mapping[str, Any],
        save_limit: int | None,
        stop_check: StopCheck | None = None,
    ) -> None:
        """fingerprint, save_limit: see `checkpoint_fingerprint`, `prune_checkpoints`. stop_check: see `train_stage`."""
        super().__init__(
            model=model, args=args, data_collator=collator, processing_class=tokenizer, **self.extra_init_kwargs()
        )
        # transformers before 5.19 tells from this one whether to divide by the accumulation steps once more.
        self.model_accepts_loss_kwargs = True
        # Kept from the Trainer, which would rewrite the model's special tokens after it.
        self.processing_class, self.tokenizer_to_save = None, tokenizer
        self.collator, self.stage_name, self.step_log, self.checkpoint_folder = (
            collator,
            stage_name,
            step_log,
            checkpoint_folder,
        )
        self.mitigations = dict(sorted(mitigations.items(), key=lambda item: (item[1].priority, item[0])))
        self.fingerprint, self.save_limit = fingerprint, save_limit
        self.loss_sums: dict[str, Tensor] = {}
        self.penalties: dict[str, Tensor] = {}
        self.grad_norm: Tensor | float = math.nan
        self.remove_callback(PrinterCallback)
        self.add_callback(StepCallback(self, stop_check))

    @property
    def unwrapped_model(self) -> PreTrainedModel:
        """The model as its weights' names know it, without what wraps it for several processes."""
        return cast(PreTrainedModel, self.model)

    def free_memory(self) -> None:
        """Let go of the optimizer's state at once: trainer and callbacks hold each other, and the next stage needs
        the memory."""
        self.optimizer = self.lr_scheduler = None
        self.callback_handler.optimizer = self.callback_handler.lr_scheduler = None
        self.accelerator.free_memory()

    def extra_init_kwargs(self) -> dict[str, Any]:
        """What this engine's constructor wants besides."""
        return {}

    # -- batches ------------------------------------------------------------------------------------------------------

    def get_train_dataloader(self) -> DataLoader[Any]:
        """The slots strictly in order; with several processes, batch by batch in turn."""
        slots: Dataset[int] = IndexDataset(len(self.collator.sequences))
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
        self._filter_labels(batches)
        count = torch.stack([target_mask(batch["labels"]).sum() for batch in batches]).sum().to(device)
        return batches, self.accelerator.reduce(count, "sum")

    @torch.no_grad()
    def _filter_labels(self, batches: list[Any]) -> None:
        """Let mitigations take targets out before anything is counted, so that a mean is over those that are left."""
        for mitigation in self.mitigations.values():
            if type(mitigation).filter_labels is Mitigation.filter_labels:
                continue
            for batch in batches:
                batch.update(self._prepare_inputs(batch))
                labels = mitigation.filter_labels(self.unwrapped_model, batch)
                if labels is not None:
                    batch["labels"] = labels

    # -- loss ---------------------------------------------------------------------------------------------------------

    def summed_nll(self, model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        """Summed negative log-likelihood of a batch's trained tokens. model: as wrapped for several processes."""
        return summed_nll(model, self.unwrapped_model, batch)

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
        here = target_mask(inputs["labels"]).sum()
        total = torch.as_tensor(here if num_items_in_batch is None else num_items_in_batch).clamp(min=1)
        readers = {name: mitigation for name, mitigation in self.mitigations.items() if mitigation.requires_logits}
        if readers:
            nll, penalties = self._nll_and_penalties(model, inputs, readers)
        else:
            nll, penalties = self.summed_nll(model, inputs), {}
        terms = {"loss": nll / total} | {f"penalty/{name}": p * (here / total) for name, p in penalties.items()}
        for name, mitigation in self.mitigations.items():
            if type(mitigation).extra_loss is Mitigation.extra_loss:  # the share is not fetched from the device for it
                continue
            extra = mitigation.extra_loss(self.unwrapped_model, float(here / total))
            if extra is not None:
                terms[f"penalty/{name}"] = terms.get(f"penalty/{name}", 0.0) + extra.float()
        for name, term in terms.items():
            self.loss_sums[name] = self.loss_sums.get(name, 0.0) + term.detach()
        loss = torch.stack(list(terms.values())).sum() * self.accelerator.num_processes
        return (loss, None) if return_outputs else loss

    def _nll_and_penalties(
        self, model: nn.Module, batch: dict[str, Tensor], readers: Mapping[str, Mitigation]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        logits = target_logits(model, batch, self.unwrapped_model)
        found = {name: reader.batch_penalty(self.unwrapped_model, batch, logits) for name, reader in readers.items()}
        return nll_from_logits(logits, batch["labels"]), {name: p.float() for name, p in found.items() if p is not None}

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """Nothing: no one reads it, and counting walks over all weights at every micro-batch."""
        return 0

    # -- update -------------------------------------------------------------------------------------------------------

    def _clip_grad_norm(self, model: nn.Module) -> Any:
        """Clip, with what pulls before it already added. The norm is that before clipping."""
        early = any(mitigation.penalty_timing == "before_clip" for mitigation in self.mitigations.values())
        if early and self.accelerator.scaler is not None:
            # Pulls are in the units of the weights, so the loss scale goes first; it goes once only, hence torch's own.
            self.accelerator.unscale_gradients()
            self._add_weight_penalties("before_clip")
            self.grad_norm = nn.utils.clip_grad_norm_(model.parameters(), self.args.max_grad_norm)
        else:
            self._add_weight_penalties("before_clip")
            self.grad_norm = super()._clip_grad_norm(model)
        return self.grad_norm

    @torch.no_grad()
    def _add_weight_penalties(self, timing: str) -> None:
        for name, mitigation in self.mitigations.items():
            if mitigation.penalty_timing == timing:
                value = mitigation.add_weight_penalty(self.unwrapped_model)
                if value is not None:
                    self.penalties[f"penalty/{name}"] = value

    def before_optimizer_step(self) -> dict[str, float]:
        """Check the update's loss and gradient, and let the weight pulls add to it. Returns what is to be logged."""
        logged = self._reduce_loss_sums() | {"grad_norm": float(self.grad_norm)}
        if self.args.fp16 and not math.isfinite(logged["grad_norm"]):
            # Loss scaling meets infinite gradients by design: it leaves the step out and tries a smaller scale.
            del logged["grad_norm"]
        self._raise_unless_finite(logged)
        self._add_weight_penalties("after_clip")
        for key, value in self.penalties.items():
            logged[key] = logged.get(key, 0.0) + float(value)
        self.penalties = {}
        if self.state.global_step == 0:
            for name, mitigation in self.mitigations.items():
                logged |= {f"{name}/{key}": value for key, value in mitigation.stage_stats().items()}
        return logged

    def _reduce_loss_sums(self) -> dict[str, float]:
        """The update's loss and penalties, summed over the processes; a penalty that none of them has is left out.

        Every process sums the same numbers in the same order, whichever terms its own batches had: one without a row of
        a penalty's has no such term.
        """
        names = ["loss", *(f"penalty/{name}" for name in self.mitigations)]
        nothing = torch.zeros_like(self.loss_sums["loss"], dtype=torch.float32)
        terms = [self.loss_sums.get(name, nothing).float() for name in names]
        there = [nothing + (name in self.loss_sums) for name in names]
        self.loss_sums = {}
        values, counts = self.accelerator.reduce(torch.stack([*terms, *there]), "sum").view(2, -1).tolist()
        return {name: value for name, value, count in zip(names, values, counts, strict=True) if count}

    @torch.no_grad()
    def after_optimizer_step(self, learning_rate: float) -> None:
        """Let the mitigations see the weights after the update."""
        rate = 0.0 if self.accelerator.optimizer_step_was_skipped else learning_rate
        for mitigation in self.mitigations.values():
            mitigation.on_step_end(self.unwrapped_model, rate)

    def _raise_unless_finite(self, values: Mapping[str, float]) -> None:
        wrong = [name for name, value in values.items() if not math.isfinite(value)]
        if wrong:
            raise RunError(
                f"stage '{self.stage_name}', update {self.state.global_step + 1} of {self.state.max_steps}",
                f"{wrong[0]} is {values[wrong[0]]}, so the weights would be lost",
                "lower train.learning_rate, set train.precision to 'float32', or look for damaged rows",
            )

    # -- checkpoints --------------------------------------------------------------------------------------------------

    def _save_checkpoint(self, *arguments: Any, **options: Any) -> None:
        with silence_libraries():
            super()._save_checkpoint(*arguments, **options)
        folder = self.checkpoint_folder / f"checkpoint-{self.state.global_step}"
        if self.args.should_save:
            self.tokenizer_to_save.save_pretrained(str(folder))
            (folder / "README.md").unlink(missing_ok=True)  # peft's model card, all placeholders
            checkpoint.save_mitigation_states(self.mitigations, folder)
            checkpoint.save_log_state(self.step_log.state_dict(), folder)
        self.accelerator.wait_for_everyone()  # each process writes its own random state
        if self.args.should_save:
            checkpoint.finalize_checkpoint(folder, {**self.fingerprint, "step": self.state.global_step})
            checkpoint.prune_checkpoints(self.checkpoint_folder, self.save_limit)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        checkpoint.load_checkpoint_weights(self.unwrapped_model, Path(resume_from_checkpoint))

    def create_model_card(self, *arguments: Any, **options: Any) -> None:
        """Nothing: a checkpoint is no publication."""
