"""`train_stage`: one stage from beginning to end."""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainingArguments, set_seed

from harness import seeding
from harness.errors import HarnessError, RunError
from harness.interfaces.mitigation import Mitigation
from harness.model import device as device_module
from harness.model import device as models
from harness.model import load
from harness.training import checkpoint
from harness.training.collator import Collator, pad_with_empty_sequences
from harness.training.model_state import prepared_for_trainer, without_side_effects
from harness.training.packing_isolation import uses_varlen_attention, verify_packing_isolation
from harness.training.step_log import OnStep, StepLog
from harness.training.trainer import StageTrainer, StopCheck
from harness.types import Progress, StageDataset, no_progress


def resolve_engine(name: str) -> tuple[type[StageTrainer], type[TrainingArguments], dict[str, Any]]:
    """The trainer, its class of arguments, and the arguments that only it has."""
    if name == "transformers":
        return StageTrainer, TrainingArguments, {}
    from trl import SFTConfig

    from harness.training.trl_trainer import TrlTrainer

    return TrlTrainer, SFTConfig, TrlTrainer.SFT_ARGUMENTS


def autocast_dtype(precision: str, device: torch.device) -> torch.dtype | None:
    """The format that the computation runs in beside float32 weights; None: float32 throughout."""
    dtype = models.resolve_dtype(precision, device)
    return None if dtype == torch.float32 else dtype


def build_training_arguments(
    settings: Mapping[str, Any], *, seed: int, folder: Path, device: torch.device, compute_dtype: torch.dtype | None
) -> dict[str, Any]:
    """Keyword arguments for `TrainingArguments`, or a subclass, of one stage.

    settings: the stage's `train`. seed: of this stage alone. folder: of checkpoints, made only if there are any.
    compute_dtype: see `autocast_dtype`. To the Trainer the stage is one epoch: its slots hold all epochs one after the
    other.
    """
    save = settings["save_steps"]
    return {
        "output_dir": str(folder) if save else tempfile.gettempdir(),
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
        "save_strategy": "steps" if save else "no",
        "save_steps": save or 1,
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
    """Updates over which the learning rate rises from 0, rounded up; the scheduler `constant` takes no notice."""
    return math.ceil(round(ratio * steps, 6))  # 0.07 * 100 is a little over 7


TOTAL_KEYS = ("steps", "loss", "seconds", "tokens")
"""What is kept of a stage beside its log."""


@dataclass(frozen=True)
class StageResult:
    """What a stage came to.

    steps: updates that were made. loss: nats a trained token, mean over the last tenth of them. seconds: wall time of
    this call, preparation included. tokens: prompt and response, without padding, over all epochs and processes.
    log: an entry every `log_steps` updates, see `StepLog`, each with its `step`.
    """

    steps: int
    loss: float
    seconds: float
    tokens: int
    log: tuple[Mapping[str, float], ...]

    def totals(self) -> dict[str, Any]:
        """All but the log, as a run keeps it."""
        return {name: getattr(self, name) for name in TOTAL_KEYS}

    @classmethod
    def from_totals(cls, totals: Mapping[str, Any]) -> StageResult:
        """From its totals, a loss that JSON has no number for being null. Raises ValueError when they are others."""
        if totals.keys() != set(TOTAL_KEYS):
            raise ValueError("these are the totals of another version")
        return cls(**{**totals, "loss": math.nan if totals["loss"] is None else totals["loss"]}, log=())


def seed_mitigations(seed: int) -> int:
    """Derive the seed of what mitigations draw outside of `train_stage`, and seed Python, numpy and torch with it.

    Args:
        seed: the spec's seed, or the stage's.

    Returns:
        The seed for `Mitigation.prepare_model` and `Mitigation.on_stage_start`.
    """
    mitigation_seed = seeding.derive_seed(seed, "mitigations")
    set_seed(mitigation_seed)
    return mitigation_seed


def no_step_callback(step: int, metrics: Mapping[str, float]) -> None:
    """An `on_step` that does nothing."""


def train_stage(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    data: StageDataset,
    mitigations: Mapping[str, Mitigation],
    *,
    seed: int,
    folder: Path,
    progress: Progress = no_progress,
    on_step: OnStep = no_step_callback,
    resume: Path | None = None,
    stop_check: StopCheck | None = None,
) -> StageResult:
    """Train `model` in place on the stage's slots, strictly in their order, and say how it went.

    The stage's own seed is derived from `seed` and its name: the same seed gives the same weights, bit for bit on a
    CPU. `on_stage_start` and `on_stage_end` of the mitigations are the caller's; their pulls and penalties happen here.
    Checkpoints, with the mitigations' state in them, go to `folder`/checkpoints every `save_steps` updates; of whole
    ones the newest `save_limit` stay. on_step: called with the number of the update and its metrics every `log_steps`
    updates.

    resume: the folder of a checkpoint of this very stage, from which to go on; see `latest_checkpoint`. `model` and
    mitigations must be as the stage found them: the same `on_stage_start` on the same weights. What comes out is what
    the uninterrupted stage would have come to, on a CPU bit for bit: weights, states, random numbers, log. `on_step`
    hears the updates after the checkpoint alone.

    stop_check: called with the number of each update when it is done and written down, and first with that of the
    checkpoint that is gone on from; when it answers true the stage ends there. It may read the model, in any mode it
    likes; it leaves no trace in what is trained.

    Raises HarnessError when there is nothing to train on or nothing to move, or when packed rows would see each other;
    RunError when the loss or gradient is no longer a finite number, memory runs out, or the checkpoint is unfinished,
    damaged, or of something else.
    """
    began = time.perf_counter()
    stage, settings = data.stage, data.stage.train
    if not data.order:
        raise HarnessError(f"stage '{stage.name}'", "no row to train on", "look at its sources with `harness preview`")
    if not any(weight.requires_grad for weight in model.parameters()):
        raise HarnessError(f"stage '{stage.name}'", "no weight can move", "check mitigations that freeze weights")
    if tokenizer.pad_token_id is None:
        raise HarnessError("model.path", "the tokenizer has no padding token", "give it one, e.g. its end of text")
    if settings["packing"]:
        with load.autocast_context(model, settings["precision"]):
            verify_packing_isolation(model)

    device = next(model.parameters()).device
    computation = autocast_dtype(settings["precision"], device)
    own = seeding.derive_seed(seed, "train", stage.name)
    trainer_class, arguments_class, extra = resolve_engine(settings["engine"])
    with (
        prepared_for_trainer(
            model, gradient_checkpointing=settings["gradient_checkpointing"], compute_dtype=computation
        ),
        _memory_errors(settings),
    ):
        arguments = arguments_class(
            **build_training_arguments(
                settings, seed=own, folder=folder / "checkpoints", device=device, compute_dtype=computation
            ),
            **extra,
        )
        # With several devices visible the Trainer would split each batch over threads; processes are to use them.
        if arguments.n_gpu > 1:
            arguments._n_gpu = 1
        together = settings["batch_size"] * arguments.world_size
        steps = data.count_steps(arguments.world_size)
        arguments.warmup_steps = warmup_steps(settings["warmup_ratio"], steps)
        log = StepLog(data, together * settings["accumulation"], steps, settings["log_steps"], progress, on_step)
        saving = bool(settings["save_steps"]) or resume is not None
        identity = (
            checkpoint.checkpoint_fingerprint(data, model, mitigations, seed=own, world_size=arguments.world_size)
            if saving
            else {}
        )
        if resume is not None:
            checkpoint.verify_checkpoint(resume, identity)
            checkpoint.load_mitigation_states(mitigations, resume)
            log.load_state_dict(checkpoint.load_log_state(resume))
        trainer = trainer_class(
            model=model,
            args=arguments,
            checkpoint_folder=folder / "checkpoints",
            collator=Collator(
                data.rows,
                pad_with_empty_sequences(data.order, together),
                tokenizer.pad_token_id,
                flatten=uses_varlen_attention(model),
            ),
            tokenizer=tokenizer,
            mitigations=mitigations,
            step_log=log,
            stage_name=stage.name,
            fingerprint=identity,
            save_limit=settings.get("save_limit"),
            stop_check=None if stop_check is None else without_side_effects(model, stop_check),
        )
        try:
            if resume is not None and stop_check is not None and stop_check(len(log.losses)):
                checkpoint.load_checkpoint_weights(model, resume)  # it had ended there already
            else:
                trainer.train(resume_from_checkpoint=None if resume is None else str(resume))
        finally:
            trainer.free_memory()
        log.finish()
    done = len(log.losses)
    return StageResult(done, log.final_loss(), time.perf_counter() - began, log.tokens_until(done), tuple(log.entries))


@contextmanager
def _memory_errors(settings: Mapping[str, object]) -> Iterator[None]:
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not device_module.is_out_of_memory(error):
            raise
        raise RunError(
            "train.batch_size",
            f"{settings['batch_size']} rows of up to {settings['max_length']} tokens do not fit into memory",
            "halve train.batch_size and double train.accumulation, switch on train.gradient_checkpointing, "
            "add the mitigation 'lora', or lower train.max_length",
        ) from error
