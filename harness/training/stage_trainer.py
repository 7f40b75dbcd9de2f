"""The trainer of both engines: it defines what an optimizer step is.

    task loss    token mean over the whole step: all micro-batches, all processes; plus penalties of a batch. With
                 weights of tokens, their weighted sum over the number of tokens
    gradient
    penalties    of weights with `penalty_timing` "before_clip", in place
    clipping
    penalties    of weights with `penalty_timing` "after_clip", in place
    on_before_step of the mitigations, which see or change the gradients
    optimizer
    on_step_end  of the mitigations, which see the new weights

An engine is a subclass. It may compute the token likelihoods in another way, and changes nothing else.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader, Dataset, SequentialSampler
from transformers import PreTrainedModel, TrainerCallback, TrainingArguments
from transformers.trainer_callback import PrinterCallback, TrainerControl, TrainerState

from harness.interfaces.mitigation import Mitigation
from harness.training import checkpoint
from harness.training.collator import Collator
from harness.training.learning import Learning
from harness.training.loss import (
    SummedLoss,
    TokenPenalty,
    loss_from_logits,
    summed_loss,
    summed_nll,
    target_logits,
    target_mask,
)
from harness.training.router_loss import LOSS_NAME, RouterLoss
from harness.training.sharded_training import ShardedTraining, unwrapped_optimizer
from harness.training.stage_logs import copy_stage_logs
from harness.training.step_log import StepLog
from harness.training.step_recovery import StepRecovery
from harness.utils import stop_signals
from harness.utils.silence import silence_libraries
from harness.utils.write_errors import report_write_errors

StopCheck = Callable[[int], bool]
"""Called with a step that is done; true: the stage ends with it."""


class StepCallback(TrainerCallback):
    """Runs the trainer's hooks around the optimizer, logs each step and ends the stage early.

    transformers calls `on_pre_optimizer_step` after clipping.
    """

    def __init__(
        self, trainer: StageTrainer, stop_check: StopCheck | None = None, save_steps: Collection[int] = ()
    ) -> None:
        """Observe the trainer.

        Args:
            trainer: The trainer.
            stop_check: That of `train_stage`.
            save_steps: The steps after which a checkpoint is written.
        """
        self.trainer, self.stop_check, self.save_steps = trainer, stop_check, frozenset(save_steps)
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
        self.learning_rate = self.trainer.learning.rate(cast(Any, self.trainer.lr_scheduler).last_epoch)
        self.metrics = self.trainer.before_optimizer_step()

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **rest: Any
    ) -> None:
        """Let the mitigations see the weights after the step."""
        self.trainer.after_optimizer_step(self.learning_rate)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **rest: Any) -> None:
        """Log the step, and check whether it was the last one. A signal is obeyed before `stop_check` evaluates."""
        self.trainer.step_log.log_step(self.learning_rate, self.metrics)
        ends = state.global_step >= state.max_steps
        if self.stop_check is not None:
            if self.trainer.stop_requested():
                ends = False  # the check is still to come
            elif self.stop_check(state.global_step):
                control.should_training_stop = ends = True
        if state.global_step in self.save_steps:
            control.should_save = True
        if not ends and self.trainer.stop_requested():
            args.output_dir = str(self.trainer.checkpoints.folder)  # without `save_steps` it is another one
            control.should_save = control.should_training_stop = self.trainer.interrupted = True


class StageTrainer(StepRecovery, ShardedTraining):
    """A Trainer with our batches, loss, penalties, log and checkpoints; a base class of each engine.

    The loss is the summed negative log-likelihood of the trained tokens, divided by their number in the whole step,
    over all its micro-batches and processes. So neither padding nor accumulation changes a step.
    """

    loss_is_scaled_for_ga: Any = True
    router_loss: RouterLoss | None = None
    """Balances the experts of a mixture of experts; None: it is not computed."""

    weights_are_loaded = False
    """Whether the model has the weights of the checkpoint to resume from already."""

    def __init__(
        self,
        *,
        model: PreTrainedModel,
        args: TrainingArguments,
        collator: Collator,
        mitigations: Mapping[str, Mitigation],
        learning: Learning,
        step_log: StepLog,
        checkpoints: checkpoint.CheckpointPolicy,
    ) -> None:
        """Prepare to train.

        Args:
            model: The model, within `prepared_for_trainer`.
            args: See `build_training_arguments`.
            collator: Rows and packed sequences of the stage.
            mitigations: The mitigations by name; they run in the order of priority, then name.
            learning: Builds the optimizer and the schedule.
            step_log: The log of the stage.
            checkpoints: How checkpoints are written.
        """
        values = {weight: weight.data for weight in model.parameters() if weight.requires_grad}
        super().__init__(
            model=model,
            args=args,
            data_collator=collator,
            processing_class=checkpoints.tokenizer,
            **self.extra_init_kwargs(),
        )
        for weight, data in values.items():  # TRL rounds the adapter of a quantized model to bfloat16
            weight.data = data
        # transformers before 5.19 otherwise divides by the accumulation steps once more.
        self.model_accepts_loss_kwargs = True
        # Hidden from the Trainer, which would change the model's special tokens to those of the tokenizer.
        self.processing_class = None
        self.collator, self.step_log, self.checkpoints = collator, step_log, checkpoints
        self.learning = learning
        self.mitigations = dict(sorted(mitigations.items(), key=lambda item: (item[1].priority, item[0])))
        self.loss_sums: dict[str, Tensor] = {}
        self.penalties: dict[str, Tensor] = {}
        self.grad_norm: Tensor | float = math.nan
        self.interrupted = self._all_stop = False
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

    def stop_requested(self) -> bool:
        """Return whether a signal asks to stop after this step. Several processes stop after the same step."""
        return self._all_stop if self.accelerator.num_processes > 1 else stop_signals.is_requested()

    def raise_if_stopped(self) -> None:
        """Raise `Interrupted` if training ended because of a signal, which another process may have received."""
        if self.interrupted:
            stop_signals.raise_if_requested()
            raise stop_signals.Interrupted("SIGTERM")

    def extra_init_kwargs(self) -> dict[str, Any]:
        """Return additional arguments for this engine's constructor."""
        return {}

    def create_optimizer(self, model: Any = None) -> Any:
        """Create the optimizer of `train.optimizer`, with the groups of weights that it and mitigations ask for."""
        if self.optimizer is None:
            decayed = self.get_decay_parameter_names(self.unwrapped_model)
            self.optimizer = self.learning.build_optimizer(
                self.unwrapped_model, decayed, self.mitigations, seed=self.args.seed
            )
        return self.optimizer

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """Create the schedule of `train.scheduler`."""
        if self.lr_scheduler is None:
            self.lr_scheduler = LambdaLR(optimizer or cast(Any, self.optimizer), self.learning.factor)
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
        self.step_batches = []
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
        with nullcontext() if self.router_loss is None else self.router_loss.recorded():
            summed = self._summed_loss(model, inputs)
        if self.router_loss is not None:  # a mean over the tokens, whose share of the step weighs it
            summed.add_penalty(LOSS_NAME, self.router_loss.of_batch(inputs) * token_count)
        loss = summed.total / total
        parts = {"loss": summed.nll} | {f"penalty/{name}": value for name, value in summed.penalties.items()}
        if summed.plain_nll is not None:
            parts["nll"] = summed.plain_nll
        parts = {name: value / total for name, value in parts.items()}
        for name, mitigation in self.mitigations.items():
            if type(mitigation).extra_loss is Mitigation.extra_loss:
                continue  # avoids fetching the share from the device
            extra = mitigation.extra_loss(self.unwrapped_model, float(token_count / total))
            if extra is not None:
                loss = loss + extra.float()
                parts[f"penalty/{name}"] = parts.get(f"penalty/{name}", 0.0) + extra.detach().float()
        for name, part in parts.items():
            self.loss_sums[name] = self.loss_sums.get(name, 0.0) + part
        loss = loss * self.accelerator.num_processes
        return (loss, None) if return_outputs else loss

    def _token_penalties(self, batch: dict[str, Tensor]) -> dict[str, TokenPenalty]:
        functions = {
            name: mitigation.token_penalty(self.unwrapped_model, batch)
            for name, mitigation in self.mitigations.items()
            if type(mitigation).token_penalty is not Mitigation.token_penalty
        }
        return {name: function for name, function in functions.items() if function is not None}

    def _summed_loss(self, model: nn.Module, batch: dict[str, Tensor]) -> SummedLoss:
        """Return the loss of a batch, in chunks of its logits unless a mitigation needs all of them at once."""
        readers = {name: mitigation for name, mitigation in self.mitigations.items() if mitigation.requires_logits}
        weighers = [
            mitigation
            for mitigation in self.mitigations.values()
            if type(mitigation).token_weights is not Mitigation.token_weights
        ]

        def product_of_weights(logits: Tensor, targets: Tensor) -> Tensor:
            return torch.stack([weigher.token_weights(logits, targets, batch).float() for weigher in weighers]).prod(0)

        penalties, weigh = self._token_penalties(batch), product_of_weights if weighers else None
        if not readers and not penalties and weigh is None:
            return SummedLoss.of_nll(self.summed_nll(model, batch))  # the engine's own
        if not readers and all(weigher.weighs_tokens_in_parts for weigher in weighers):
            return summed_loss(model, self.unwrapped_model, batch, penalties, weigh)
        logits = target_logits(model, batch, self.unwrapped_model)
        loss = loss_from_logits(logits, batch, penalties, weigh)
        for name, reader in readers.items():
            mean = reader.batch_penalty(self.unwrapped_model, batch, logits)
            if mean is not None:
                loss.add_penalty(name, mean.float() * len(logits))
        return loss

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
        """Add the weight penalties after clipping, check that loss and gradient are finite, and return the metrics."""
        self._add_weight_penalties("after_clip")
        metrics, penalties = self._fetch_metrics()
        if self.args.fp16 and not math.isfinite(metrics["grad_norm"]):
            # Loss scaling meets infinite gradients by design: it skips the step and tries a smaller scale.
            del metrics["grad_norm"]
        self.step_is_skipped = self.skips_step(metrics)
        for key, value in penalties.items():
            metrics[key] = metrics.get(key, 0.0) + value
        if self.step_is_skipped:
            self.unwrapped_model.zero_grad(set_to_none=True)  # no optimizer changes a weight without a gradient
            return metrics | {"skipped": 1.0}
        if self.batch_parts > 1:
            metrics["batch_parts"] = float(self.batch_parts)
        self._call_before_step()
        if self.state.global_step == 0:
            for name, mitigation in self.mitigations.items():
                metrics |= {f"{name}/{key}": value for key, value in mitigation.stage_stats().items()}
        return metrics

    @torch.no_grad()
    def _call_before_step(self) -> None:
        """Let the mitigations see or change the gradients that the optimizer gets."""
        optimizer = unwrapped_optimizer(self.optimizer)
        for mitigation in self.mitigations.values():
            mitigation.on_before_step(self.unwrapped_model, optimizer)

    def _fetch_metrics(self) -> tuple[dict[str, float], dict[str, float]]:
        """Copy the step's metrics to the host, all in one transfer, since the device is idle meanwhile.

        Loss and penalties of batches are summed over the processes; a penalty that none of them has is left out. Every
        process reduces the same terms in the same order, whichever its batches have: a batch without rows of a penalty
        lacks its term.

        Returns:
            Loss, penalties of batches and `grad_norm`; and the penalties of weights.
        """
        terms_of_batches = (*self.mitigations, LOSS_NAME)
        names = ["loss", "nll", *(f"penalty/{name}" for name in terms_of_batches)]
        zero = torch.zeros_like(self.loss_sums["loss"], dtype=torch.float32)
        terms = [self.loss_sums.get(name, zero).float() for name in names]
        has_term = [zero + (name in self.loss_sums) for name in names]
        stops = zero + stop_signals.is_requested()
        reduced = self.accelerator.reduce(torch.stack([*terms, *has_term, stops]), "sum")
        local = [
            torch.as_tensor(value, dtype=torch.float64, device=zero.device)
            for value in (self.grad_norm, *self.penalties.values())
        ]
        values = torch.cat([reduced.double(), torch.stack(local)]).tolist()
        sums, counts, (stopped, grad_norm, *penalties) = (
            values[: len(names)],
            values[len(names) : 2 * len(names)],
            values[2 * len(names) :],
        )
        self._all_stop = stopped > 0
        metrics = {name: value for name, value, count in zip(names, sums, counts, strict=True) if count}
        weight_penalties = dict(zip(self.penalties, penalties, strict=True))
        self.loss_sums, self.penalties = {}, {}
        return metrics | {"grad_norm": grad_norm}, weight_penalties

    @torch.no_grad()
    def after_optimizer_step(self, learning_rate: float) -> None:
        """Let the mitigations see the weights after the step."""
        is_skipped = self.step_is_skipped or self.accelerator.optimizer_step_was_skipped
        rate = 0.0 if is_skipped else learning_rate
        for mitigation in self.mitigations.values():
            mitigation.on_step_end(self.unwrapped_model, rate)

    # -- checkpoints --------------------------------------------------------------------------------------------------

    def _save_checkpoint(self, *arguments: Any, **options: Any) -> None:
        folder = self.checkpoints.folder / f"checkpoint-{self.state.global_step}"
        with report_write_errors(folder, "the checkpoint"):
            self._write_checkpoint(folder, *arguments, **options)

    def _write_checkpoint(self, folder: Path, *arguments: Any, **options: Any) -> None:
        with silence_libraries(), self.plain_weights():
            super()._save_checkpoint(*arguments, **options)
        if self.args.should_save:
            self.checkpoints.tokenizer.save_pretrained(str(folder))
            (folder / "README.md").unlink(missing_ok=True)  # an empty model card of PEFT
            checkpoint.save_mitigation_states(self.mitigations, folder)
            checkpoint.save_log_state(self.step_log.state_dict(), folder)
            copy_stage_logs(self.checkpoints.folder.parent, folder)
        self.accelerator.wait_for_everyone()  # each process writes its random state
        if self.args.should_save:
            checkpoint.finalize_checkpoint(folder, {**self.checkpoints.fingerprint, "step": self.state.global_step})
            checkpoint.prune_checkpoints(self.checkpoints.folder, self.checkpoints.max_checkpoints)
            for mitigation in self.mitigations.values():
                mitigation.after_checkpoint(folder)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        if self.shards is None and not self.weights_are_loaded:  # shards were loaded before they were divided
            checkpoint.load_checkpoint_weights(self.unwrapped_model, Path(resume_from_checkpoint))

    def create_model_card(self, *arguments: Any, **options: Any) -> None:
        """Write no model card: a checkpoint is not a publication."""
