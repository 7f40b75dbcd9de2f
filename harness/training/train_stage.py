"""`train_stage`: train one stage from beginning to end."""

from __future__ import annotations

import math
import pickle
import tempfile
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypedDict, Unpack

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainingArguments

from harness import seeding
from harness.errors import HarnessError, RunError
from harness.events import WarningRaised
from harness.interfaces.mitigation import Mitigation
from harness.model.device import is_out_of_memory
from harness.model.precision import autocast_dtype
from harness.registry import Registry, discover_plugins
from harness.training import checkpoint
from harness.training.checkpoint_fingerprint import checkpoint_fingerprint
from harness.training.collator import Collator, pad_with_empty_sequences
from harness.training.compiled_layers import compiled_layers, without_compilation
from harness.training.learning import Learning
from harness.training.memory import measure_stage_memory, reset_peak_memory
from harness.training.memory_estimate import with_fitting_settings
from harness.training.model_state import prepared_for_trainer, without_side_effects
from harness.training.offloaded_activations import activation_offloading
from harness.training.packing_isolation import takes_row_boundaries, unpadded_batches
from harness.training.router_loss import create_router_loss
from harness.training.sharded_weights import ShardedWeights, gathered_for, sharded_weights
from harness.training.stage_schedule import checkpoint_steps, saves_checkpoints
from harness.training.stage_trainer import StageTrainer, StepCallback, StopCheck
from harness.training.step_log import OnStep, StepLog, row_lengths
from harness.training.step_recovery import Tolerance
from harness.types import Progress, StageDataset, no_progress
from harness.utils import stop_signals

TOTAL_KEYS = ("steps", "loss", "seconds", "tokens", "memory")
"""What a run stores of a stage's result besides its log."""


@dataclass(frozen=True)
class StageResult:
    """The result of a trained stage.

    Attributes:
        steps: Optimizer steps that were made.
        loss: Nats per trained token, mean over the last tenth of the steps.
        seconds: Wall time of the stage; of a resumed one with the time up to its checkpoint.
        tokens: Prompt and response tokens, without padding, over all epochs and processes.
        log: An entry every `log_steps` steps, see `StepLog`, each with its `step`.
        memory: Bytes by kind, see `measure_stage_memory`.
    """

    steps: int
    loss: float
    seconds: float
    tokens: int
    log: tuple[Mapping[str, float], ...]
    memory: Mapping[str, int] = field(default_factory=dict)

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
        stop_check: Called with each step after it is logged, and first with that of the checkpoint to resume from, with
            its weights. The stage ends when it returns true. It may use the model in any mode, and change its weights:
            it does not affect training otherwise. After a step during which a signal was received it is called when the
            stage is resumed.
        registry: Creates the optimizer and the schedule; by default that of the installed plugins.
        resume_is_intact: Whether the files of the checkpoint to resume from were verified just now, by
            `latest_intact_checkpoint`; by default they are verified.
        check_steps: The steps after which `stop_check` uses the weights; by default all. Sharded weights are gathered
            for it after these steps.
        check_reads_weights: Called with the step of the checkpoint to resume from; false: `stop_check` does not use the
            weights after this step, so that they need not be loaded for it. By default it does.
    """

    progress: Progress
    on_step: OnStep
    stop_check: StopCheck | None
    registry: Registry
    resume_is_intact: bool
    check_steps: Collection[int]
    check_reads_weights: Callable[[int], bool]


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
        folder: Checkpoints are written to `folder`/checkpoints at `checkpoint_steps`, with the mitigations' state;
            the newest `save_limit` complete ones are kept.
        resume: A checkpoint of this stage to resume from, see `latest_intact_checkpoint`.
        callbacks: See `StageCallbacks`.

    Raises:
        HarnessError: There is no row to train on or no trainable weight, or packed rows attend to each other.
        Interrupted: A signal was received; a checkpoint of the last step is written, whatever `save_steps` is.
        RunError: The loss or gradient is not finite, memory runs out, or the checkpoint is incomplete, damaged or of
            something else.
    """
    _require_trainable(model, tokenizer, data)
    registry = callbacks.get("registry") or discover_plugins()
    stage_seed = seeding.derive_seed(seed, "train", data.stage.name)
    checkpoint_folder = folder / "checkpoints"
    device = next(model.parameters()).device
    compute_dtype = autocast_dtype(data.stage.train["precision"], device)
    reset_peak_memory(device)
    planned_data = data  # the fingerprint of a checkpoint does not depend on the memory of a device
    ((optimizer, optimizer_options),) = data.stage.train["optimizer"].items()
    bytes_per_weight = registry.create("optimizers", optimizer, optimizer_options).bytes_per_weight
    data = with_fitting_settings(model, data, compute_dtype, bytes_per_weight)
    settings = data.stage.train
    gradient_checkpointing = settings["gradient_checkpointing"]
    with (
        prepared_for_trainer(
            model,
            gradient_checkpointing=gradient_checkpointing,
            compute_dtype=compute_dtype,
            keeps_16_bits=settings.get("weights") == "bfloat16",
        ),
        _memory_errors(settings),
        unpadded_batches(model, settings, int(row_lengths(data.rows).max())) as flatten,
        compiled_layers(model, settings.get("compile", False)) as is_compiled,
    ):
        if not flatten and not data.is_padded:
            _warn_of_padding(data)
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
        sequences_per_batch = settings["batch_size"] * arguments.world_size
        step_log = StepLog(
            data,
            sequences_per_batch * settings["accumulation"],
            steps,
            settings["log_steps"],
            callbacks.get("progress", no_progress),
            callbacks.get("on_step", no_step_callback),
        )
        fingerprint = checkpoint_fingerprint(
            planned_data, model, mitigations, seed=stage_seed, world_size=arguments.world_size
        )
        if resume is not None:
            checkpoint.verify_checkpoint(resume, fingerprint, is_intact=callbacks.get("resume_is_intact", False))
            checkpoint.load_mitigation_states(mitigations, resume)
            step_log.load_state_dict(checkpoint.load_log_state(resume))

        sequences = pad_with_empty_sequences(data.order, sequences_per_batch)
        router_loss = create_router_loss(model, settings.get("router_loss", 0))  # TRL changes the config
        trainer = trainer_class(
            model=model,
            args=arguments,
            collator=Collator(
                data.rows, sequences, tokenizer.pad_token_id, flatten=flatten, boundaries=takes_row_boundaries(model)
            ),
            mitigations=mitigations,
            learning=Learning.create(settings, steps, registry),
            step_log=step_log,
            checkpoints=checkpoint.CheckpointPolicy(
                checkpoint_folder, fingerprint, settings.get("save_limit"), tokenizer
            ),
        )
        trainer.router_loss = router_loss
        trainer.tolerance = Tolerance(
            settings.get("skip_nonfinite", 0),
            settings.get("halve_batches", 0),
            lambda text: registry.emit(WarningRaised(text=text)),
        )
        stop_check = callbacks.get("stop_check")
        isolated_check = None if stop_check is None else without_side_effects(model, stop_check)
        if isolated_check is not None and is_compiled:
            isolated_check = without_compilation(isolated_check)
        try:
            has_ended = False
            if resume is not None and isolated_check is not None:  # which may have an evaluation to make up for
                resumed_step = len(step_log.losses)
                check_reads_weights = callbacks.get("check_reads_weights")
                reads_weights = check_reads_weights is None or check_reads_weights(resumed_step)
                if reads_weights:  # otherwise the trainer loads them
                    checkpoint.load_checkpoint_weights(model, resume)
                    trainer.weights_are_loaded = True  # the check may change them
                has_ended = isolated_check(resumed_step)
                if has_ended and not reads_weights:
                    checkpoint.load_checkpoint_weights(model, resume)
            with (
                nullcontext() if has_ended else _sharded_weights_at_start(model, settings, arguments, resume) as shards
            ):
                step_check = isolated_check
                if shards is not None:
                    trainer.use_shards(shards)
                    if isolated_check is not None:
                        step_check = gathered_for(isolated_check, shards, callbacks.get("check_steps"))
                save_steps = checkpoint_steps(data, arguments.world_size)
                trainer.add_callback(StepCallback(trainer, step_check, save_steps))
                if not has_ended:
                    trainer.activation_context = activation_offloading(model, settings, device)
                    with stop_signals.deferred(), _state_errors(resume):
                        trainer.train(resume_from_checkpoint=None if resume is None else str(resume))
                    trainer.raise_if_stopped()
                memory = measure_stage_memory(model, trainer.optimizer, mitigations.values())
        finally:
            trainer.free_memory()
        step_log.finish()

    steps_done = len(step_log.losses)
    return StageResult(
        steps=steps_done,
        loss=step_log.final_loss(),
        seconds=step_log.seconds,
        tokens=step_log.tokens_until(steps_done),
        log=tuple(step_log.entries),
        memory=memory,
    )


@contextmanager
def _sharded_weights_at_start(
    model: PreTrainedModel, settings: Mapping[str, Any], arguments: TrainingArguments, resume: Path | None
) -> Iterator[ShardedWeights | None]:
    """Divide the weights, which are first loaded from the checkpoint to resume from; see `sharded_weights`."""
    if resume is not None and settings.get("sharding") is not None:
        checkpoint.load_checkpoint_weights(model, resume)
    with sharded_weights(model, settings, arguments.world_size) as shards:
        yield shards


def _require_trainable(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, data: StageDataset) -> None:
    where = f"stage '{data.stage.name}'"
    if not data.order:
        raise HarnessError(where, "there is no row to train on", "inspect its sources with `harness preview`")
    if not any(weight.requires_grad for weight in model.parameters()):
        raise HarnessError(where, "the model has no trainable weight", "check the mitigations that freeze weights")
    if tokenizer.pad_token_id is None:
        hint = "set pad_token in its tokenizer_config.json, e.g. to the end-of-sequence token"
        raise HarnessError("model.path", "the tokenizer has no padding token", hint)


def _warn_of_padding(data: StageDataset) -> None:
    warnings.warn(
        f"stage '{data.stage.name}' trains on padded batches whose rows have different lengths: its rows were ordered "
        "for batches without padding, and this model on this device does not separate the rows of a line",
        stacklevel=3,
    )


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
    return {
        "output_dir": str(folder) if saves_checkpoints(settings) else tempfile.gettempdir(),
        "per_device_train_batch_size": settings["batch_size"],
        "gradient_accumulation_steps": settings["accumulation"],
        "num_train_epochs": 1,
        "learning_rate": settings["learning_rate"],
        "weight_decay": settings["weight_decay"],
        "max_grad_norm": settings["max_grad_norm"],
        "bf16": compute_dtype == torch.bfloat16,
        "fp16": compute_dtype == torch.float16,
        "save_strategy": "no",  # `StepCallback` asks for checkpoints
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


@contextmanager
def _state_errors(checkpoint_folder: Path | None) -> Iterator[None]:
    """Name the checkpoint whose state of optimizer or random numbers cannot be read. torch's text advises to run it."""
    try:
        yield
    except (pickle.UnpicklingError, EOFError) as error:
        what = f"its state cannot be read ({type(error).__name__})"
        raise RunError(str(checkpoint_folder), what, checkpoint.HINT_OLDER_CHECKPOINT) from error


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
