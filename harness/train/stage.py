"""The door of the room: `train`, one stage from beginning to end."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase, set_seed

from harness import model as models
from harness import seeds
from harness.contracts import Mitigation, Progress, StageData, silent
from harness.errors import HarnessError, RunError
from harness.train.arguments import autocast, training_arguments, warmup_steps
from harness.train.borrowed import borrowed
from harness.train.collate import Collator, fill
from harness.train.engines import engine
from harness.train.log import OnStep, StageLog
from harness.train.separation import prove_separate


@dataclass(frozen=True)
class Trained:
    """What a stage came to.

    steps: updates. loss: nats a trained token, mean over the last tenth of the updates. seconds: wall time of the
    whole stage, preparation included. tokens: prompt and response, without padding, over all epochs and processes.
    log: an entry every `log_steps` updates, see `StageLog`, each with its `step`.
    """

    steps: int
    loss: float
    seconds: float
    tokens: int
    log: tuple[Mapping[str, float], ...]


def seed_mitigations(seed: int) -> None:
    """Seed Python, numpy and torch for what mitigations draw outside of `train`: first adapters, labels of a Fisher.

    To be called once, before `Mitigation.model`; seed: the spec's.
    """
    set_seed(seeds.derive(seed, "mitigations"))


def unheard(step: int, metrics: Mapping[str, float]) -> None:
    """An `on_step` that does nothing."""


def train(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    data: StageData,
    mitigations: Mapping[str, Mitigation],
    *,
    seed: int,
    folder: Path,
    progress: Progress = silent,
    on_step: OnStep = unheard,
) -> Trained:
    """Train `model` in place on the stage's slots, strictly in their order, and say how it went.

    The stage's own seed is derived from `seed` and its name: the same seed gives the same weights, bit for bit on a
    CPU. `begin_stage` and `end_stage` of the mitigations are the caller's; their pulls and penalties happen here.
    Checkpoints, with the mitigations' state in them, go to `folder`/checkpoints every `save_steps` updates.
    on_step: called with the number of the update and its metrics every `log_steps` updates.

    Raises HarnessError when there is nothing to train on or nothing to move, or when packed rows would see each other;
    RunError when the loss or gradient is no longer a finite number, or memory runs out.
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
        with models.computation(model, settings["precision"]):
            prove_separate(model)

    device = next(model.parameters()).device
    computation = autocast(settings["precision"], device)
    own = seeds.derive(seed, "train", stage.name)
    trainer_class, arguments_class, extra = engine(settings["engine"])
    with borrowed(model, checkpointing=settings["gradient_checkpointing"], computation=computation), _memory(settings):
        arguments = arguments_class(
            **training_arguments(
                settings, seed=own, folder=folder / "checkpoints", device=device, computation=computation
            ),
            **extra,
        )
        # With several devices visible the Trainer would split each batch over threads; processes are to use them.
        if arguments.n_gpu > 1:
            arguments._n_gpu = 1
        together = settings["batch_size"] * arguments.world_size
        steps = data.steps(arguments.world_size)
        arguments.warmup_steps = warmup_steps(settings["warmup_ratio"], steps)
        log = StageLog(data, together * settings["accumulation"], steps, settings["log_steps"], progress, on_step)
        trainer = trainer_class(
            model=model,
            args=arguments,
            folder=folder / "checkpoints",
            collator=Collator(data.rows, fill(data.order, together), tokenizer.pad_token_id),
            tokenizer=tokenizer,
            mitigations=mitigations,
            log=log,
            stage=stage.name,
        )
        try:
            trainer.train()
        finally:
            trainer.release()
    return Trained(steps, log.final_loss(), time.perf_counter() - began, log.tokens(steps), tuple(log.entries))


@contextmanager
def _memory(settings: Mapping[str, object]) -> Iterator[None]:
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not models.out_of_memory(error):
            raise
        raise RunError(
            "train.batch_size",
            f"{settings['batch_size']} rows of up to {settings['max_length']} tokens do not fit into memory",
            "halve train.batch_size and double train.accumulation, switch on train.gradient_checkpointing, "
            "add the mitigation 'lora', or lower train.max_length",
        ) from error
