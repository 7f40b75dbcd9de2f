"""Looking at a model in the middle of its training without a trace: whatever the look draws or switches is put back."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import nn


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
