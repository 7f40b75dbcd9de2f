"""Prepare a model for a trainer, and restore its state afterwards.

Trainers change a model in ways that the next stage would inherit. TRL and accelerate each wrap `forward`; accelerate
then finds its mark and would skip the autocast of the second stage.
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

from harness.model.precision import upcast_trainable

TRAINER_ATTRIBUTES = ("forward", "_original_forward", "_is_accelerate_prepared")
"""Attributes that trainers set on a model."""

CONFIG_ATTRIBUTES = ("use_cache", "output_router_logits", "router_aux_loss_coef")
"""Settings of the model's config that trainers change."""


def without_side_effects(model: nn.Module, callback: Callable[[int], bool]) -> Callable[[int], bool]:
    """Return `callback` such that a call changes neither random states nor modes, nor which weights are trainable.

    Weights that it changes stay changed.
    """

    def isolated_callback(step: int) -> bool:
        with restored_training_state(model):
            return callback(step)

    return isolated_callback


@contextmanager
def restored_training_state(model: nn.Module) -> Iterator[None]:
    """Restore random states, modes and which weights are trainable at the end of the context, without gradients."""
    modes = [(module, module.training) for module in model.modules()]
    requires_grad = [(weight, weight.requires_grad) for weight in model.parameters()]
    python_state, numpy_state = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(), torch.no_grad():
            yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)
        for module, is_training in modes:
            module.training = is_training
        for weight, is_trainable in requires_grad:  # PEFT makes all weights of an adapter trainable when it is enabled
            weight.requires_grad_(is_trainable)


def unwrap_peft_model(model: nn.Module) -> nn.Module:
    """Return the causal language model, inside a PEFT model or not."""
    get_base_model = getattr(model, "get_base_model", None)
    return get_base_model() if callable(get_base_model) else model


@contextmanager
def prepared_for_trainer(
    model: PreTrainedModel,
    *,
    gradient_checkpointing: bool,
    compute_dtype: torch.dtype | None,
    keeps_16_bits: bool = False,
) -> Iterator[None]:
    """Within the context, `model` is ready for a trainer; at the end its state is restored, also after an error.

    Trained weights are float32 with autocast, because 16 bits would lose AdamW's small updates. Without autocast all
    weights are, because one computation cannot mix dtypes. At the end the weights get their original dtypes again: they
    are rounded once per stage, and not once per step.

    Args:
        model: The model to train.
        gradient_checkpointing: Whether to recompute activations in the backward pass.
        compute_dtype: The dtype of the autocast; None: without autocast.
        keeps_16_bits: Whether trained weights keep their dtype, see `rounded_optimizer`.
    """
    causal_lm = unwrap_peft_model(model)
    attributes = {
        module: {name: vars(module)[name] for name in TRAINER_ATTRIBUTES if name in vars(module)}
        for module in {model, causal_lm}
    }
    config = model.config.get_text_config()
    settings = {name: getattr(config, name) for name in CONFIG_ATTRIBUTES if hasattr(config, name)}
    was_training = model.training
    enable_checkpointing = gradient_checkpointing and not any(
        getattr(module, "gradient_checkpointing", False) for module in model.modules()
    )
    original_dtypes = {} if keeps_16_bits else upcast_trainable(model, include_frozen=compute_dtype is None)
    if enable_checkpointing:
        _renamed_method(model, "activation_checkpointing_enable", "gradient_checkpointing_enable")()
    try:
        yield
    finally:
        if enable_checkpointing:
            _renamed_method(model, "activation_checkpointing_disable", "gradient_checkpointing_disable")()
        for weight, dtype in original_dtypes.items():
            weight.grad = None
            weight.data = weight.data.to(dtype)
        for name, value in settings.items():
            setattr(config, name, value)
        for module, saved_attributes in attributes.items():
            for name in TRAINER_ATTRIBUTES:
                vars(module).pop(name, None)
            vars(module).update(saved_attributes)
        model.train(was_training)


def _renamed_method(model: nn.Module, name: str, old_name: str) -> Any:
    return getattr(model, name, None) or getattr(model, old_name)  # transformers 5.2x renamed both methods
