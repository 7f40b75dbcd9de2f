"""The proof, on the model at hand, that rows packed into one slot cannot see each other.

Whether `position_ids` that start anew keep rows apart depends on the attention implementation and on the model's own
code; some only warn. So it is tried before a packed stage, on a few tokens, in batches as the collator makes them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from harness.errors import HarnessError
from harness.training.collator import IGNORED, Collator
from harness.training.loss import model_inputs
from harness.types import Row

LENGTHS = (5, 7, 8)
"""Tokens of the rows of the trial: two different ones, each to stand before the third."""

TOLERANCE = {torch.float32: 1e-3}
"""Largest change of the last row's logits, as a share of the change that open attention shows, by number format."""
COARSE = 0.05
"""The same in the formats of 16 bits, whose rounding alone is about a hundredth."""

ROUNDING = 1e-5
"""And as a share of the logits: a model that does not look back at all changes by rounding alone."""


def is_varlen(model: PreTrainedModel) -> bool:
    """Whether the attention is a kernel for rows of various lengths (FlashAttention): it takes them in one line.

    Such kernels read where a row starts from `position_ids` only when the batch is a single line; of several lines
    each is one row to them.
    """
    return "flash" in (getattr(model.config, "_attn_implementation", None) or "")


@torch.no_grad()
def prove_separate(model: PreTrainedModel) -> None:
    """Raise HarnessError unless a packed row gets the logits that it gets alone, wherever and after what it stands.

    Two slots of one batch hold the same last row after different rows of different lengths. Its logits must not differ
    between them, nor from the row alone, measured against how much they differ when the attention is open. Costs 4
    passes of at most 30 tokens.
    """
    was_training = model.training
    model.eval()
    try:
        embedding: Any = model.get_input_embeddings()
        rows, flat = _rows(embedding.weight.shape[0]), is_varlen(model)
        packed = _logits(model, Collator(rows, [(0, 2), (1, 2)], pad=0, flat=flat)([0, 1]))  # (B, T, V)
        tolerance = TOLERANCE.get(packed.dtype, COARSE)
        first, second = LENGTHS[0] + LENGTHS[2], LENGTHS[1] + LENGTHS[2]
        ends = [(0, first), (0, first + second)] if flat else [(0, first), (1, second)]
        inside = [packed[line, end - LENGTHS[2] : end].float() for line, end in ends]  # (LENGTHS[2], V) each
        alone = _logits(model, Collator(rows, [(2,)], pad=0)([0]))[0].float()
        opened = [
            _logits(model, Collator([_joined(rows[before], rows[2])], [(0,)], pad=0)([0]))[0, -LENGTHS[2] :].float()
            for before in (0, 1)
        ]
    finally:
        model.train(was_training)
    allowed = tolerance * _gap(*opened) + ROUNDING * float(alone.abs().max())
    if max(_gap(*inside), *(_gap(line, alone) for line in inside)) > allowed:
        name = getattr(model.config, "_attn_implementation", None) or "its own"
        raise HarnessError(
            "train.packing",
            f"with attention '{name}' the rows of a pack see each other in a {model.config.model_type} model",
            "set model.attention to 'sdpa' or 'eager', or train.packing to false",
        )


def _rows(vocabulary: int) -> list[Row]:
    rows, start = [], 1
    for number, length in enumerate(LENGTHS):
        ids = tuple(token % vocabulary for token in range(start, start + length))
        rows.append(Row(f"{number:016x}", "trial", ids, (IGNORED,) * length))
        start += length
    return rows


def _joined(one: Row, other: Row) -> Row:
    return Row(one.id, one.source, one.input_ids + other.input_ids, one.labels + other.labels)


def _logits(model: PreTrainedModel, batch: dict[str, Tensor]) -> Tensor:
    there = next(model.parameters()).device
    logits: Tensor = model(**model_inputs({name: tensor.to(there) for name, tensor in batch.items()})).logits
    return logits


def _gap(one: Tensor, two: Tensor) -> float:
    return float((one - two).abs().max())
