"""The frozen base model: reference of the mitigations that compare with its predictions.

With an adapter it is the same model with the adapter disabled, at no cost. Otherwise it is a frozen copy of the
trainable weights. Weights that autocast converts are stored in its dtype (2 bytes a weight in bfloat16, 4 in float32),
others as they are: the copy's outputs equal the model's. Weights that are frozen anyway are shared, and the mitigations
that need a copy share one.
"""

from __future__ import annotations

import copy
import weakref
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from harness.errors import HarnessError
from harness.model import save
from harness.model.precision import weights_outside_autocast
from harness.training.collator import Collator, separates_rows
from harness.types import TokenizedExample

_base_copies: weakref.WeakKeyDictionary[Any, Any] = weakref.WeakKeyDictionary()
_trained_later: weakref.WeakKeyDictionary[Any, set[int]] = weakref.WeakKeyDictionary()


def exclude_from_sharing(model: Any, weights: Iterable[nn.Parameter]) -> None:
    """Let `snapshot_base` copy these weights even if they are frozen then: a later stage trains them."""
    _trained_later[model] = {id(weight) for weight in weights}


def copied_weights(model: Any) -> list[nn.Parameter]:
    """Return the weights that `snapshot_base` copies: those that this stage or a later one trains."""
    trained_later = _trained_later.get(model, set())
    return [weight for weight in model.parameters() if weight.requires_grad or id(weight) in trained_later]


def snapshot_base(model: Any) -> Any:
    """Make the base model available for `frozen_base_model`. Call it before the first step of the first stage.

    Returns:
        The copy; None for a model with an adapter, which needs none.
    """
    if save.is_peft_model(model) or model in _base_copies:
        return _base_copies.get(model)
    copied = {id(weight) for weight in copied_weights(model)}
    frozen = {id(weight): weight for weight in model.parameters() if id(weight) not in copied}
    base_copy = copy.deepcopy(model, dict(frozen))
    device_type = next(model.parameters()).device.type
    outside_autocast = {id(weight) for weight in weights_outside_autocast(base_copy).values()}
    for weight in base_copy.parameters():
        if id(weight) not in frozen:
            weight.requires_grad_(False)
            if torch.is_autocast_enabled(device_type) and id(weight) not in outside_autocast:
                weight.data = weight.data.to(torch.get_autocast_dtype(device_type))
    _base_copies[model] = base_copy.eval()
    return base_copy


@contextmanager
def frozen_base_model(model: Any) -> Iterator[Any]:
    """Yield the base model in evaluation mode; no gradients are computed within the context.

    Raises:
        HarnessError: `snapshot_base` was not called before.
    """
    with torch.no_grad():
        if save.is_peft_model(model):
            with save.adapter_disabled(model) as base, eval_mode(base):
                yield base
        elif model in _base_copies:
            base = _base_copies[model]
            if separates_rows(base) != separates_rows(model):
                base.set_attn_implementation(model.config._attn_implementation)
            yield base
        else:
            raise HarnessError(
                "mitigations",
                "the base model was not copied before the first step, and its weights have changed since",
                "add an adapter such as 'lora', which can be disabled, or train without a checkpoint to resume",
            )


@contextmanager
def eval_mode(model: Any) -> Iterator[Any]:
    """Yield the model in evaluation mode; its mode is restored when the context ends."""
    was_training = model.training
    model.eval()
    try:
        yield model
    finally:
        model.train(was_training)


def collate_rows(model: Any, rows: Sequence[TokenizedExample]) -> dict[str, Tensor]:
    """Collate rows into one batch on the model's device.

    Returns:
        `input_ids`, `labels` and `attention_mask`, each of shape (B, T), padded on the right. If the model separates
        the rows of a line: `input_ids`, `labels` and `position_ids`, each of shape (1, T), without padding.
    """
    device = next(model.parameters()).device
    pad_id = getattr(getattr(model, "config", None), "pad_token_id", None) or 0
    sequences = [(index,) for index in range(len(rows))]
    batch = Collator(rows, sequences, pad_id, flatten=separates_rows(model))(range(len(rows)))
    return {name: tensor.to(device) for name, tensor in batch.items()}
