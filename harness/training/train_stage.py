"""`train_stage`: train one stage from beginning to end."""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict, Unpack

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainingArguments

from harness import seeding
from harness.errors import HarnessError, RunError
from harness.interfaces.mitigation import Mitigation
from harness.model.device import is_out_of_memory
from harness.model.precision import autocast_dtype
from harness.training import checkpoint
from harness.training.checkpoint_fingerprint import checkpoint_fingerprint
from harness.training.collator import Collator, pad_with_empty_sequences
from harness.training.model_state import prepared_for_trainer, without_side_effects
from harness.training.packing_isolation import unpadded_batches
from harness.training.stage_trainer import StageTrainer, StepCallback, StopCheck
from harness.training.step_log import OnStep, StepLog
from harness.types import Progress, StageDataset, no_progress

TOTAL_KEYS = ("steps", "loss", "seconds", "tokens")
"""What a run stores of a stage's result besides its log."""


@dataclass(frozen=True)
class StageResult:
    """The result of a trained stage.

    Attributes:
        steps: Optimizer steps that were made.
        loss: Nats per trained token, mean over the last tenth of the steps.
        seconds: Wall time of this call, including preparation.
        tokens: Prompt and response tokens, without padding, over all epochs and processes.
        log: An entry every `log_steps` steps, see `StepLog`, each with its `step`.
    """

    steps: int
    loss: float
    seconds: float
    tokens: int
    log: tuple[Mapping[str, float], ...]

    def totals(self) -> dict[str, Any]:
        """Return everything except the log, as a run stores it."""
        return {name: getattr(self, name) for name in TOTAL_KEYS}

    @classmethod
    def from_totals(cls, totals: Mapping[str, Any]) -> StageResult:
        """Return the result for stored totals; a loss that JSON cannot express is null there.

        Raises:
            ValueError: The totals have other keys.
        """
        if totals.keys() != set(TOTAL_KEYS):
            raise ValueError("these are the totals of another version")
        return cls(**{**totals, "loss": math.nan if totals["loss"] is None else totals["loss"]}, log=())


class StageCallbacks(TypedDict, total=False):
    """Optional keyword arguments of `train_stage`.

    Attributes:
        progress: Called after every step.
        on_step: Called with the step and its metrics every `log_steps` steps.
        stop_check: Called with each step after it is logged, and first with that of the checkpoint to resume from. The
            stage ends when it returns true. It may use the model in any mode: it does not affect training.
    """

    progress: Progress
    on_step: OnStep
    stop_check: StopCheck | None


def no_step_callback(step: int, metrics: Mapping[str, float]) -> None:
    """Do nothing: an `on_step` for those who need none."""


def train_stage(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    data: StageDataset,
    mitigations: Mapping[str, Mitigation],
    *,
    seed: int,
    folder: Path,
    resume: Path | None = None,
    **callbacks: Unpack[StageCallbacks],
) -> StageResult:
    """Train `model` in place on the stage's packed sequences, strictly in their order.

    The same seed gives the same weights, bit for bit on a CPU. The caller calls `on_stage_start` and `on_stage_end` of
    the mitigations; their penalties are applied here.

    A resumed stage has the result of the uninterrupted one, bit for bit on a CPU: weights, states, random numbers and
    log. `on_step` is called only for steps after the checkpoint.

    Args:
        model: The model. To resume: as the stage found it, after the same `on_stage_start` on the same weights.
        tokenizer: The model's tokenizer, with a padding token.
        data: Rows, order and settings of the stage.
        mitigations: The mitigations by name, in the same state as the model.
        seed: The spec's seed; the stage's seed is derived from it and the stage's name.
        folder: Checkpoints are written to `folder`/checkpoints every `save_steps` steps, with the mitigations' state;
            the newest `save_limit` complete ones are kept.
        resume: A checkpoint of this stage to resume from, see `latest_checkpoint`.
        callbacks: See `StageCallbacks`.

    Raises:
        HarnessError: There is no row to train on or no trainable weight, or packed rows attend to each other.
        RunError: The loss or gradient is not finite, memory runs out, or the checkpoint is incomplete, damaged or of
            something else.
    """
    start_time = time.perf_counter()
    settings = data.stage.train
    _require_trainable(model, tokenizer, data)
    stage_seed = seeding.derive_seed(seed, "train", data.stage.name)
    checkpoint_folder = folder / "checkpoints"
    device = next(model.parameters()).device
    compute_dtype = autocast_dtype(settings["precision"], device)
    gradient_checkpointing = settings["gradient_checkpointing"]
    with (
        prepared_for_trainer(model, gradient_checkpointing=gradient_checkpointing, compute_dtype=compute_dtype),
        _memory_errors(settings),
        unpadded_batches(model, settings) as flatten,
    ):
        trainer_class, arguments_class, engine_arguments = resolve_engine(settings["engine"])
        arguments = arguments_class(
            **build_training_arguments(
                settings, seed=stage_seed, folder=checkpoint_folder, device=device, compute_dtype=compute_dtype
            ),
            **engine_arguments,
        )
        # With several visible devices the Trainer would split each batch over threads; use processes instead.
        if arguments.n_gpu > 1:
            arguments._n_gpu = 1
        steps = data.count_steps(arguments.world_size)
        arguments.warmup_steps = warmup_steps(settings["warmup_ratio"], steps)
        sequences_per_batch = settings["batch_size"] * arguments.world_size
        step_log = StepLog(
            data,
            sequences_per_batch * settings["accumulation"],
            steps,
            settings["log_steps"],
            callbacks.get("progress", no_progress),
            callbacks.get("on_step", no_step_callback),
        )
        fingerprint: dict[str, Any] = {}
        if settings["save_steps"] or resume is not None:
            fingerprint = checkpoint_fingerprint(
                data, model, mitigations, seed=stage_seed, world_size=arguments.world_size
            )
        if resume is not None:
            checkpoint.verify_checkpoint(resume, fingerprint)
            checkpoint.load_mitigation_states(mitigations, resume)
            step_log.load_state_dict(checkpoint.load_log_state(resume))

        sequences = pad_with_empty_sequences(data.order, sequences_per_batch)
        trainer = trainer_class(
            model=model,
            args=arguments,
            collator=Collator(data.rows, sequences, tokenizer.pad_token_id, flatten=flatten),
            tokenizer=tokenizer,
            mitigations=mitigations,
            step_log=step_log,
            checkpoints=checkpoint.CheckpointPolicy(checkpoint_folder, fingerprint, settings.get("save_limit")),
        )
        stop_check = callbacks.get("stop_check")
        isolated_check = None if stop_check is None else without_side_effects(model, stop_check)
        trainer.add_callback(StepCallback(trainer, isolated_check))
        try:
            if resume is not None and stop_check is not None and stop_check(len(step_log.losses)):
                checkpoint.load_checkpoint_weights(model, resume)  # the stage had ended at this checkpoint
            else:
                trainer.train(resume_from_checkpoint=None if resume is None else str(resume))
        finally:
            trainer.free_memory()
        step_log.finish()

    steps_done = len(step_log.losses)
    return StageResult(
        steps=steps_done,
        loss=step_log.final_loss(),
        seconds=time.perf_counter() - start_time,
        tokens=step_log.tokens_until(steps_done),
        log=tuple(step_log.entries),
    )


def _require_trainable(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, data: StageDataset) -> None:
    where = f"stage '{data.stage.name}'"
    if not data.order:
        raise HarnessError(where, "there is no row to train on", "inspect its sources with `harness preview`")
    if not any(weight.requires_grad for weight in model.parameters()):
        raise HarnessError(where, "the model has no trainable weight", "check the mitigations that freeze weights")
    if tokenizer.pad_token_id is None:
        hint = "set pad_token in its tokenizer_config.json, e.g. to the end-of-sequence token"
        raise HarnessError("model.path", "the tokenizer has no padding token", hint)


def resolve_engine(name: str) -> tuple[type[StageTrainer], type[TrainingArguments], dict[str, Any]]:
    """Return an engine's trainer, its class of arguments, and the arguments that only it has.

    Args:
        name: `transformers` or `trl`.
    """
    if name == "transformers":
        return StageTrainer, TrainingArguments, {}
    from trl.trainer.sft_config import SFTConfig

    from harness.training.trl_trainer import TrlTrainer

    return TrlTrainer, SFTConfig, TrlTrainer.SFT_ARGUMENTS


def build_training_arguments(
    settings: Mapping[str, Any], *, seed: int, folder: Path, device: torch.device, compute_dtype: torch.dtype | None
) -> dict[str, Any]:
    """Return the keyword arguments of `TrainingArguments`, or a subclass, for one stage.

    To the Trainer the stage is a single epoch: its packed sequences contain all epochs one after the other.

    Args:
        settings: The stage's `train`.
        seed: The stage's seed.
        folder: The folder of the checkpoints; created only if checkpoints are written.
        device: The device of the model.
        compute_dtype: See `autocast_dtype`.
    """
    save_steps = settings["save_steps"]
    return {
        "output_dir": str(folder) if save_steps else tempfile.gettempdir(),
        "per_device_train_batch_size": settings["batch_size"],
        "gradient_accumulation_steps": settings["accumulation"],
        "num_train_epochs": 1,
        "learning_rate": settings["learning_rate"],
        "lr_scheduler_type": settings["scheduler"],
        "weight_decay": settings["weight_decay"],
        "max_grad_norm": settings["max_grad_norm"],
        "optim": "adamw_torch_fused",
        "bf16": compute_dtype == torch.bfloat16,
        "fp16": compute_dtype == torch.float16,
        "save_strategy": "steps" if save_steps else "no",
        "save_steps": save_steps or 1,
        "seed": seed,
        "data_seed": seed,
        "use_cpu": device.type == "cpu",
        "dataloader_pin_memory": device.type == "cuda",
        "remove_unused_columns": False,
        "label_names": ["labels"],
        "average_tokens_across_devices": True,
        "ddp_find_unused_parameters": False,
        "logging_strategy": "no",
        "logging_nan_inf_filter": False,
        "disable_tqdm": True,
        "report_to": [],
    }


def warmup_steps(ratio: float, steps: int) -> int:
    """Return the steps over which the learning rate rises, rounded up; see `learning_rate_factor`."""
    return math.ceil(round(ratio * steps, 6))  # 0.07 * 100 is slightly more than 7


@contextmanager
def _memory_errors(settings: Mapping[str, object]) -> Iterator[None]:
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise RunError(
            "train.batch_size",
            f"{settings['batch_size']} rows of up to {settings['max_length']} tokens do not fit into memory",
            "halve train.batch_size and double train.accumulation, switch on train.gradient_checkpointing, "
            "add the mitigation 'lora', or lower train.max_length",
        ) from error
