"""The proof, on the model at hand, that rows packed into one slot cannot see each other.

Whether `position_ids` that start anew keep rows apart depends on the attention implementation and on the model's own
code; some only warn. So it is tried before a packed stage, on a few tokens.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from harness.errors import HarnessError

LENGTH = 8
"""Tokens of each of the two rows of the trial."""

TOLERANCE = 0.05
"""Largest change of the second row's logits, as a share of the change that open attention shows."""

ROUNDING = 1e-5
"""And as a share of the logits: a model that does not look back at all changes by rounding alone."""


@torch.no_grad()
def prove_separate(model: PreTrainedModel) -> None:
    """Raise HarnessError unless a packed row gets the logits that it gets alone, whatever stands before it.

    Two slots hold the same second row after different first rows. Its logits must not differ between them, nor from
    the row alone, measured against how much they differ when the attention is open. Costs 3 passes of 16 tokens.
    """
    was_training = model.training
    model.eval()
    try:
        embedding: Any = model.get_input_embeddings()
        size = embedding.weight.shape[0]
        first, other, second = (torch.arange(LENGTH) + 1 + LENGTH * n for n in range(3))
        slots = torch.stack([torch.cat([first, second]), torch.cat([other, second])]) % size  # (2, 16)
        restarted = torch.arange(LENGTH).repeat(2).expand(2, -1)
        packed = _logits(model, slots, restarted)
        opened = _logits(model, slots, torch.arange(2 * LENGTH).expand(2, -1))
        alone = _logits(model, slots[:1, LENGTH:], restarted[:1, LENGTH:])
    finally:
        model.train(was_training)
    allowed = TOLERANCE * _gap(opened[0], opened[1]) + ROUNDING * float(alone.abs().max())
    if _gap(packed[0], packed[1]) > allowed or _gap(packed[0], alone[0]) > allowed:
        name = getattr(model.config, "_attn_implementation", None) or "its own"
        raise HarnessError(
            "train.packing",
            f"with attention '{name}' the rows of a pack see each other in a {model.config.model_type} model",
            "set model.attention to 'sdpa' or 'eager', or train.packing to false",
        )


def _logits(model: PreTrainedModel, ids: Tensor, positions: Tensor) -> Tensor:
    there = next(model.parameters()).device
    logits = model(input_ids=ids.to(there), position_ids=positions.to(there), use_cache=False).logits
    return logits[:, -LENGTH:].float()  # (B, LENGTH, V)


def _gap(one: Tensor, two: Tensor) -> float:
    return float((one - two).abs().max())
