"""The base model beside the one that trains: for the mitigations that compare with what it would say.

With an adapter it is the same model with the adapter off, and costs nothing. Otherwise it is a frozen copy of the
weights that can move, in the format that is computed with (2 bytes a weight in bfloat16, 4 in float32); weights that
are frozen anyway are shared, and so is the copy itself between the mitigations that ask for one.
"""

from __future__ import annotations

import copy
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from harness.errors import HarnessError
from harness.model import save
from harness.training.collator import Collator
from harness.types import TokenizedExample

_base_copies: weakref.WeakKeyDictionary[Any, Any] = weakref.WeakKeyDictionary()


def snapshot_base(model: Any) -> None:
    """Make the base model available for `frozen_base_model`; to be called before the first stage's first update."""
    if save.is_peft_model(model) or model in _base_copies:
        return
    shared = {id(weight): weight for weight in model.parameters() if not weight.requires_grad}
    made = copy.deepcopy(model, dict(shared))
    kind = next(model.parameters()).device.type
    for weight in made.parameters():
        if id(weight) not in shared:
            weight.requires_grad_(False)
            if torch.is_autocast_enabled(kind) and weight.is_floating_point():
                weight.data = weight.data.to(torch.get_autocast_dtype(kind))
    _base_copies[model] = made.eval()


@contextmanager
def frozen_base_model(model: Any) -> Iterator[Any]:
    """The base model in evaluation mode, without gradients, until the context ends.

    Raises HarnessError when `snapshot_base` was not called before.
    """
    with torch.no_grad():
        if save.is_peft_model(model):
            with save.adapter_disabled(model) as same, eval_mode(same):
                yield same
        elif model in _base_copies:
            yield _base_copies[model]
        else:
            raise HarnessError(
                "mitigations",
                "the base model was not copied before the first update, and its weights have moved since",
                "add an adapter such as 'lora', which can be switched off, or train without a checkpoint to resume",
            )


@contextmanager
def eval_mode(model: Any) -> Iterator[Any]:
    """The model in evaluation mode, until the context ends."""
    was_training = model.training
    model.eval()
    try:
        yield model
    finally:
        model.train(was_training)


def collate_rows(model: Any, rows: Sequence[TokenizedExample]) -> dict[str, Tensor]:
    """The rows as one batch on the model's device."""
    device = next(model.parameters()).device
    pad = getattr(getattr(model, "config", None), "pad_token_id", None) or 0
    made = Collator(rows, [(index,) for index in range(len(rows))], pad)(range(len(rows)))
    return {name: tensor.to(device) for name, tensor in made.items()}
