"""The trainer of both engines: it defines what an optimizer step is.

    task loss    token mean over the whole step: all micro-batches, all processes; plus penalties of a batch
    gradient
    penalties    of weights with `penalty_timing` "before_clip", in place
    clipping
    penalties    of weights with `penalty_timing` "after_clip", in place
    optimizer
    on_step_end  of the mitigations, which see the new weights

An engine is a subclass. It may compute the token likelihoods in another way, and changes nothing else.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader, Dataset, SequentialSampler
from transformers import PreTrainedModel, PreTrainedTokenizerBase, Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_callback import PrinterCallback, TrainerControl, TrainerState
from transformers.trainer_utils import SchedulerType

from harness.errors import RunError
from harness.interfaces.mitigation import Mitigation
from harness.training import checkpoint
from harness.training.collator import Collator
from harness.training.learning_rate import learning_rate_factor
from harness.training.loss import nll_from_logits, summed_nll, target_logits, target_mask
from harness.training.step_log import StepLog
from harness.utils.silence import silence_libraries

StopCheck = Callable[[int], bool]
"""Called with a step that is done; true: the stage ends with it."""


class StepCallback(TrainerCallback):
    """Runs the trainer's hooks around the optimizer, logs each step and ends the stage early.

    transformers calls `on_pre_optimizer_step` after clipping.
    """

    def __init__(self, trainer: StageTrainer, stop_check: StopCheck | None = None) -> None:
        """Observe the trainer. `stop_check` is that of `train_stage`."""
        self.trainer, self.stop_check = trainer, stop_check
        self.learning_rate = math.nan
        self.metrics: dict[str, float] = {}

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **rest: Any
    ) -> None:
        """Start the log's clock."""
        self.trainer.step_log.start()

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **rest: Any
    ) -> None:
        """Add the penalties after clipping, and remember the learning rate of this step."""
        self.learning_rate = float(cast(Any, self.trainer.lr_scheduler).get_last_lr()[0])
        self.metrics = self.trainer.before_optimizer_step()

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **rest: Any
    ) -> None:
        """Let the mitigations see the weights after the step."""
        self.trainer.after_optimizer_step(self.learning_rate)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **rest: Any) -> None:
        """Log the step, and check whether it was the last one."""
        self.trainer.step_log.log_step(self.learning_rate, self.metrics)
        if self.stop_check is not None and self.stop_check(state.global_step):
            control.should_training_stop = True


class StageTrainer(Trainer):
    """A Trainer with our batches, loss, penalties, log and checkpoints; a base class of each engine.

    The loss is the summed negative log-likelihood of the trained tokens, divided by their number in the whole step,
    over all its micro-batches and processes. So neither padding nor accumulation changes a step.
    """

    loss_is_scaled_for_ga: Any = True

    def __init__(
        self,
        *,
        model: PreTrainedModel,
        args: TrainingArguments,
        collator: Collator,
        tokenizer: PreTrainedTokenizerBase,
        mitigations: Mapping[str, Mitigation],
        step_log: StepLog,
        checkpoints: checkpoint.CheckpointPolicy,
    ) -> None:
        """Prepare to train.

        Args:
            model: The model, within `prepared_for_trainer`.
            args: See `build_training_arguments`.
            collator: Rows and packed sequences of the stage.
            tokenizer: Saved with each checkpoint.
            mitigations: The mitigations by name; they run in the order of priority, then name.
            step_log: The log of the stage.
            checkpoints: How checkpoints are written.
        """
        super().__init__(
            model=model, args=args, data_collator=collator, processing_class=tokenizer, **self.extra_init_kwargs()
        )
        # transformers before 5.19 otherwise divides by the accumulation steps once more.
        self.model_accepts_loss_kwargs = True
        # Hidden from the Trainer, which would change the model's special tokens to those of the tokenizer.
        self.processing_class, self.tokenizer_to_save = None, tokenizer
        self.collator, self.step_log, self.checkpoints = collator, step_log, checkpoints
        self.mitigations = dict(sorted(mitigations.items(), key=lambda item: (item[1].priority, item[0])))
        self.loss_sums: dict[str, Tensor] = {}
        self.penalties: dict[str, Tensor] = {}
        self.grad_norm: Tensor | float = math.nan
        self.remove_callback(PrinterCallback)

    @property
    def unwrapped_model(self) -> PreTrainedModel:
        """The model without the wrapper for several processes, so that its weights have their own names."""
        return cast(PreTrainedModel, self.model)

    def free_memory(self) -> None:
        """Free the optimizer's state now.

        Trainer and callbacks refer to each other, so the garbage collector would free it too late for the next stage.
        """
        self.optimizer = self.lr_scheduler = None
        self.callback_handler.optimizer = self.callback_handler.lr_scheduler = None
        self.accelerator.free_memory()

    def extra_init_kwargs(self) -> dict[str, Any]:
        """Return additional arguments for this engine's constructor."""
        return {}

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """Create the schedule of `learning_rate_factor`, whose first step has a rate above 0."""
        if self.lr_scheduler is None:
            factor = partial(
                learning_rate_factor,
                scheduler=SchedulerType(self.args.lr_scheduler_type).value,
                warmup_steps=self.args.get_warmup_steps(num_training_steps),
                steps=num_training_steps,
            )
            self.lr_scheduler = LambdaLR(optimizer or cast(Any, self.optimizer), factor)
            self._created_lr_scheduler = True
        return self.lr_scheduler

    # -- batches ------------------------------------------------------------------------------------------------------

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Return the packed sequences strictly in order; several processes take batches in turn."""
        indices = range(len(self.collator.sequences))
        loader = DataLoader(
            cast("Dataset[int]", indices),
            batch_size=self._train_batch_size,
            sampler=SequentialSampler(indices),
            collate_fn=self.collator,
            pin_memory=self.args.dataloader_pin_memory,
        )
        prepared: DataLoader[Any] = self.accelerator.prepare(loader)
        return prepared

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], Tensor]:
        """Return the micro-batches of one step, and the number of tokens that all processes train in it."""
        batches = [batch for _, batch in zip(range(num_batches), epoch_iterator, strict=False)]
        self._filter_labels(batches)
        count = torch.stack([target_mask(batch["labels"]).sum() for batch in batches]).sum().to(device)
        return batches, self.accelerator.reduce(count, "sum")

    @torch.no_grad()
    def _filter_labels(self, batches: list[Any]) -> None:
        """Let mitigations remove targets before they are counted, so that means are over the remaining ones."""
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
        """Return the summed negative log-likelihood of a batch's trained tokens, in nats.

        Args:
            model: The model as wrapped for several processes.
            batch: As the collator returns it.
        """
        return summed_nll(model, self.unwrapped_model, batch)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """Return the loss of a micro-batch, including penalties of the batch.

        A penalty is a mean over the micro-batch's trained tokens. Weighted with their share of the step it becomes a
        mean over the step's tokens, however the step is divided into micro-batches. The loss is multiplied by the
        number of processes, because their gradients are averaged.
        """
        token_count = target_mask(inputs["labels"]).sum()
        total = torch.as_tensor(token_count if num_items_in_batch is None else num_items_in_batch).clamp(min=1)
        readers = {name: mitigation for name, mitigation in self.mitigations.items() if mitigation.requires_logits}
        if readers:
            nll, penalties = self._nll_and_penalties(model, inputs, readers)
        else:
            nll, penalties = self.summed_nll(model, inputs), {}
        share = token_count / total
        terms = {"loss": nll / total} | {f"penalty/{name}": penalty * share for name, penalty in penalties.items()}
        for name, mitigation in self.mitigations.items():
            if type(mitigation).extra_loss is Mitigation.extra_loss:
                continue  # avoids fetching the share from the device
            extra = mitigation.extra_loss(self.unwrapped_model, float(share))
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
        penalties = {}
        for name, reader in readers.items():
            penalty = reader.batch_penalty(self.unwrapped_model, batch, logits)
            if penalty is not None:
                penalties[name] = penalty.float()
        return nll_from_logits(logits, batch["labels"]), penalties

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """Return 0: nothing reads it, and counting visits all weights at every micro-batch."""
        return 0

    # -- step ---------------------------------------------------------------------------------------------------------

    def _clip_grad_norm(self, model: nn.Module) -> Any:
        """Clip the gradient, including penalties with the timing "before_clip"; return the norm before clipping."""
        penalties_before = any(mitigation.penalty_timing == "before_clip" for mitigation in self.mitigations.values())
        if penalties_before and self.accelerator.scaler is not None:
            # Penalties have no loss scale, so the gradient is unscaled first. It may be unscaled only once: hence
            # torch's function and not the Trainer's.
            self.accelerator.unscale_gradients()
            self._add_weight_penalties("before_clip")
            self.grad_norm = nn.utils.clip_grad_norm_(model.parameters(), self.args.max_grad_norm)
        else:
            self._add_weight_penalties("before_clip")
            base: Any = super()
            self.grad_norm = base._clip_grad_norm(model)
        return self.grad_norm

    @torch.no_grad()
    def _add_weight_penalties(self, timing: str) -> None:
        for name, mitigation in self.mitigations.items():
            if mitigation.penalty_timing == timing:
                value = mitigation.add_weight_penalty(self.unwrapped_model)
                if value is not None:
                    self.penalties[f"penalty/{name}"] = value

    def before_optimizer_step(self) -> dict[str, float]:
        """Check that loss and gradient are finite, add the weight penalties after clipping, and return the metrics."""
        metrics = self._reduce_loss_sums() | {"grad_norm": float(self.grad_norm)}
        if self.args.fp16 and not math.isfinite(metrics["grad_norm"]):
            # Loss scaling meets infinite gradients by design: it skips the step and tries a smaller scale.
            del metrics["grad_norm"]
        self._raise_unless_finite(metrics)
        self._add_weight_penalties("after_clip")
        for key, value in self.penalties.items():
            metrics[key] = metrics.get(key, 0.0) + float(value)
        self.penalties = {}
        if self.state.global_step == 0:
            for name, mitigation in self.mitigations.items():
                metrics |= {f"{name}/{key}": value for key, value in mitigation.stage_stats().items()}
        return metrics

    def _reduce_loss_sums(self) -> dict[str, float]:
        """Return the step's loss and penalties, summed over the processes; a penalty that none of them has is left out.

        Every process reduces the same terms in the same order, whichever its batches have: a batch without rows of a
        penalty lacks its term.
        """
        names = ["loss", *(f"penalty/{name}" for name in self.mitigations)]
        zero = torch.zeros_like(self.loss_sums["loss"], dtype=torch.float32)
        terms = [self.loss_sums.get(name, zero).float() for name in names]
        has_term = [zero + (name in self.loss_sums) for name in names]
        self.loss_sums = {}
        values, counts = self.accelerator.reduce(torch.stack([*terms, *has_term]), "sum").view(2, -1).tolist()
        return {name: value for name, value, count in zip(names, values, counts, strict=True) if count}

    @torch.no_grad()
    def after_optimizer_step(self, learning_rate: float) -> None:
        """Let the mitigations see the weights after the step."""
        rate = 0.0 if self.accelerator.optimizer_step_was_skipped else learning_rate
        for mitigation in self.mitigations.values():
            mitigation.on_step_end(self.unwrapped_model, rate)

    def _raise_unless_finite(self, metrics: Mapping[str, float]) -> None:
        for name, value in metrics.items():
            if not math.isfinite(value):
                raise RunError(
                    f"stage '{self.step_log.stage_name}', step {self.state.global_step + 1} of {self.state.max_steps}",
                    f"{name} is {value}, which would destroy the weights",
                    "lower train.learning_rate, set train.precision to 'float32', or look for damaged rows",
                )

    # -- checkpoints --------------------------------------------------------------------------------------------------

    def _save_checkpoint(self, *arguments: Any, **options: Any) -> None:
        with silence_libraries():
            super()._save_checkpoint(*arguments, **options)
        folder = self.checkpoints.folder / f"checkpoint-{self.state.global_step}"
        if self.args.should_save:
            self.tokenizer_to_save.save_pretrained(str(folder))
            (folder / "README.md").unlink(missing_ok=True)  # an empty model card of PEFT
            checkpoint.save_mitigation_states(self.mitigations, folder)
            checkpoint.save_log_state(self.step_log.state_dict(), folder)
        self.accelerator.wait_for_everyone()  # each process writes its random state
        if self.args.should_save:
            checkpoint.finalize_checkpoint(folder, {**self.checkpoints.fingerprint, "step": self.state.global_step})
            checkpoint.prune_checkpoints(self.checkpoints.folder, self.checkpoints.max_checkpoints)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        checkpoint.load_checkpoint_weights(self.unwrapped_model, Path(resume_from_checkpoint))

    def create_model_card(self, *arguments: Any, **options: Any) -> None:
        """Write no model card: a checkpoint is not a publication."""
