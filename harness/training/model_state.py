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


def untouched(model: nn.Module, look: Callable[[int], bool]) -> Callable[[int], bool]:
    """`look` as it is, except that random numbers and the modes of `model` are afterwards what they were before."""

    def looked(step: int) -> bool:
        with _as_found(model):
            return look(step)

    return looked


@contextmanager
def _as_found(model: nn.Module) -> Iterator[None]:
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


MARKS = ("forward", "_original_forward", "_is_accelerate_prepared")
SETTINGS = ("use_cache", "output_router_logits", "router_aux_loss_coef")


def core_of(model: nn.Module) -> nn.Module:
    """The causal language model itself, inside a peft model or not."""
    inner = getattr(model, "get_base_model", None)
    return inner() if callable(inner) else model


@contextmanager
def borrowed(model: PreTrainedModel, *, checkpointing: bool, computation: torch.dtype | None) -> Iterator[None]:
    """Prepare `model` for a trainer; at the end take back every mark, also when training failed.

    checkpointing: compute activations again in the backward pass.
    computation: the format of the autocast. Weights that move are float32 within it, since AdamW's small updates are
    lost in bfloat16's 8 bits; without autocast all weights are, since one computation cannot mix formats. Weights that
    were not float32 are rounded back at the end, once a stage and not once an update.
    """
    core = core_of(model)
    marks = {module: {name: vars(module)[name] for name in MARKS if name in vars(module)} for module in {model, core}}
    config = model.config.get_text_config()
    settings = {name: getattr(config, name) for name in SETTINGS if hasattr(config, name)}
    was_training = model.training
    switched = checkpointing and not any(getattr(module, "gradient_checkpointing", False) for module in model.modules())
    formats = _raise_precision(model, frozen=computation is None)
    if switched:
        _named(model, "activation_checkpointing_enable", "gradient_checkpointing_enable")()
    try:
        yield
    finally:
        if switched:
            _named(model, "activation_checkpointing_disable", "gradient_checkpointing_disable")()
        for weight, dtype in formats.items():
            weight.grad = None
            weight.data = weight.data.to(dtype)
        for name, value in settings.items():
            setattr(config, name, value)
        for module, found in marks.items():
            for name in MARKS:
                vars(module).pop(name, None)
            vars(module).update(found)
        model.train(was_training)


def _raise_precision(model: nn.Module, *, frozen: bool) -> dict[nn.Parameter, torch.dtype]:
    formats = {}
    for weight in model.parameters():
        if weight.dtype in (torch.bfloat16, torch.float16) and (frozen or weight.requires_grad):
            formats[weight] = weight.dtype
            weight.data = weight.data.float()
    return formats


def _named(model: nn.Module, name: str, before: str) -> Any:
    return getattr(model, name, None) or getattr(model, before)  # transformers 5.2x renamed the pair
