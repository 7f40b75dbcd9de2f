"""The model as a trainer needs it, and afterwards as it was.

Trainers leave marks on a model that the next stage would inherit: TRL and accelerate each put a new forward around the
last one, and accelerate, finding its mark, would skip the second stage's autocast altogether.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel


def without_side_effects(model: nn.Module, callback: Callable[[int], bool]) -> Callable[[int], bool]:
    """`callback` as it is, except that random numbers and the modes of `model` are afterwards what they were before."""

    def looked(step: int) -> bool:
        with _restore_training_state(model):
            return callback(step)

    return looked


@contextmanager
def _restore_training_state(model: nn.Module) -> Iterator[None]:
    modes = [(module, module.training) for module in model.modules()]
    moving = [(weight, weight.requires_grad) for weight in model.parameters()]
    python, numbers = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(), torch.no_grad():
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numbers)
        for module, training in modes:
            module.training = training
        for weight, moves in moving:  # an adapter that is switched off and on again lets all of its weights move
            weight.requires_grad_(moves)


TRAINER_ATTRIBUTES = ("forward", "_original_forward", "_is_accelerate_prepared")
CONFIG_ATTRIBUTES = ("use_cache", "output_router_logits", "router_aux_loss_coef")


def unwrap_peft_model(model: nn.Module) -> nn.Module:
    """The causal language model itself, inside a peft model or not."""
    inner = getattr(model, "get_base_model", None)
    return inner() if callable(inner) else model


@contextmanager
def prepared_for_trainer(
    model: PreTrainedModel, *, gradient_checkpointing: bool, compute_dtype: torch.dtype | None
) -> Iterator[None]:
    """Prepare `model` for a trainer; at the end take back every mark, also when training failed.

    gradient_checkpointing: compute activations again in the backward pass.
    compute_dtype: the format of the autocast. Weights that move are float32 within it, since AdamW's small updates are
    lost in bfloat16's 8 bits; without autocast all weights are, since one computation cannot mix formats. Weights that
    were not float32 are rounded back at the end, once a stage and not once an update.
    """
    core = unwrap_peft_model(model)
    marks = {
        module: {name: vars(module)[name] for name in TRAINER_ATTRIBUTES if name in vars(module)}
        for module in {model, core}
    }
    config = model.config.get_text_config()
    settings = {name: getattr(config, name) for name in CONFIG_ATTRIBUTES if hasattr(config, name)}
    was_training = model.training
    switched = gradient_checkpointing and not any(
        getattr(module, "gradient_checkpointing", False) for module in model.modules()
    )
    formats = _upcast_weights(model, include_frozen=compute_dtype is None)
    if switched:
        _renamed_method(model, "activation_checkpointing_enable", "gradient_checkpointing_enable")()
    try:
        yield
    finally:
        if switched:
            _renamed_method(model, "activation_checkpointing_disable", "gradient_checkpointing_disable")()
        for weight, dtype in formats.items():
            weight.grad = None
            weight.data = weight.data.to(dtype)
        for name, value in settings.items():
            setattr(config, name, value)
        for module, found in marks.items():
            for name in TRAINER_ATTRIBUTES:
                vars(module).pop(name, None)
            vars(module).update(found)
        model.train(was_training)


def _upcast_weights(model: nn.Module, *, include_frozen: bool) -> dict[nn.Parameter, torch.dtype]:
    formats = {}
    for weight in model.parameters():
        if weight.dtype in (torch.bfloat16, torch.float16) and (include_frozen or weight.requires_grad):
            formats[weight] = weight.dtype
            weight.data = weight.data.float()
    return formats


def _renamed_method(model: nn.Module, name: str, old_name: str) -> Any:
    return getattr(model, name, None) or getattr(model, old_name)  # transformers 5.2x renamed the pair
