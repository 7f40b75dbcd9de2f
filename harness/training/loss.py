"""The task loss of a batch: negative log-likelihood of the trained tokens only.

Labels are not shifted; position t predicts token t + 1. With prompt p, response r and padding -:

    input_ids     p0   p1   r0   r1   -
    labels       -100 -100  r0   r1  -100
    target_mask    0    1    1    0    0      positions whose logits are computed
    target_tokens      r0   r1                what these positions predict
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from harness.model.output_head import logits_at
from harness.types import IGNORE_INDEX


def target_mask(labels: Tensor) -> Tensor:
    """Return which positions predict a trained token, as booleans of shape (B, T), from unshifted labels (B, T)."""
    mask = torch.zeros_like(labels, dtype=torch.bool)
    mask[:, :-1] = labels[:, 1:] != IGNORE_INDEX
    return mask


def target_tokens(labels: Tensor) -> Tensor:
    """Return the N trained tokens of unshifted labels (B, T), row by row, with the shape (N,)."""
    return labels[:, 1:][labels[:, 1:] != IGNORE_INDEX]


def target_logits(model: nn.Module, batch: Mapping[str, Tensor], causal_lm: nn.Module | None = None) -> Tensor:
    """Return the logits that predict the N trained tokens of a batch, row by row, with their graph: (N, V).

    Args:
        model: The model to call.
        batch: As `Collator` returns it.
        causal_lm: The causal language model (or PEFT model) that has the output head, if `model` wraps it.

    Raises:
        HarnessError: The model has no output head.
    """
    with logits_at(model if causal_lm is None else causal_lm, target_mask(batch["labels"])):
        logits: Tensor = model(**model_inputs(batch)).logits[0]
    return logits


def summed_nll(model: nn.Module, causal_lm: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
    """Return the summed negative log-likelihood of a batch's trained tokens, in nats.

    Args:
        model: The model to call; it may wrap `causal_lm`.
        causal_lm: The causal language model that has the output head.
        batch: As `Collator` returns it.

    Returns:
        A float32 scalar with its graph. For a batch without a trained token: 0, connected to the weights.

    Raises:
        HarnessError: The model has no output head.
    """
    return nll_from_logits(target_logits(model, batch, causal_lm), batch["labels"])


def nll_from_logits(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the summed negative log-likelihood in nats from `target_logits` (N, V) and labels (B, T)."""
    return functional.cross_entropy(logits.float(), target_tokens(labels).to(logits.device), reduction="sum")


def model_inputs(batch: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return the arguments of the forward pass: the batch without labels, and no cache, which training never reads."""
    return {**{name: tensor for name, tensor in batch.items() if name != "labels"}, "use_cache": False}
