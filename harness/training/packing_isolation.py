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
from harness.training.collator import IGNORE_INDEX, Collator
from harness.training.loss import model_inputs
from harness.types import TokenizedExample

PROBE_LENGTHS = (5, 7, 8)
"""Tokens of the rows of the trial: two different ones, each to stand before the third."""

TOLERANCE_BY_DTYPE = {torch.float32: 1e-3}
"""Largest change of the last row's logits, as a share of the change that open attention shows, by number format."""
TOLERANCE_16_BIT = 0.05
"""The same in the formats of 16 bits, whose rounding alone is about a hundredth."""

ROUNDING_TOLERANCE = 1e-5
"""And as a share of the logits: a model that does not look back at all changes by rounding alone."""


def uses_varlen_attention(model: PreTrainedModel) -> bool:
    """Whether the attention is a kernel for rows of various lengths (FlashAttention): it takes them in one line.

    Such kernels read where a row starts from `position_ids` only when the batch is a single line; of several lines
    each is one row to them.
    """
    return "flash" in (getattr(model.config, "_attn_implementation", None) or "")


@torch.no_grad()
def verify_packing_isolation(model: PreTrainedModel) -> None:
    """Raise HarnessError unless a packed row gets the logits that it gets alone, wherever and after what it stands.

    Two slots of one batch hold the same last row after different rows of different lengths. Its logits must not differ
    between them, nor from the row alone, measured against how much they differ when the attention is open. Costs 4
    passes of at most 30 tokens.
    """
    was_training = model.training
    model.eval()
    try:
        embedding: Any = model.get_input_embeddings()
        rows, flat = _probe_rows(embedding.weight.shape[0]), uses_varlen_attention(model)
        packed = _logits(model, Collator(rows, [(0, 2), (1, 2)], pad_id=0, flatten=flat)([0, 1]))  # (B, T, V)
        tolerance = TOLERANCE_BY_DTYPE.get(packed.dtype, TOLERANCE_16_BIT)
        first, second = PROBE_LENGTHS[0] + PROBE_LENGTHS[2], PROBE_LENGTHS[1] + PROBE_LENGTHS[2]
        ends = [(0, first), (0, first + second)] if flat else [(0, first), (1, second)]
        inside = [packed[line, end - PROBE_LENGTHS[2] : end].float() for line, end in ends]  # (LENGTHS[2], V) each
        alone = _logits(model, Collator(rows, [(2,)], pad_id=0)([0]))[0].float()
        opened = [
            _logits(model, Collator([_concatenate_rows(rows[before], rows[2])], [(0,)], pad_id=0)([0]))[
                0, -PROBE_LENGTHS[2] :
            ].float()
            for before in (0, 1)
        ]
    finally:
        model.train(was_training)
    allowed = tolerance * _max_abs_difference(*opened) + ROUNDING_TOLERANCE * float(alone.abs().max())
    if max(_max_abs_difference(*inside), *(_max_abs_difference(line, alone) for line in inside)) > allowed:
        name = getattr(model.config, "_attn_implementation", None) or "its own"
        raise HarnessError(
            "train.packing",
            f"with attention '{name}' the rows of a pack see each other in a {model.config.model_type} model",
            "set model.attention to 'sdpa' or 'eager', or train.packing to false",
        )


def _probe_rows(vocabulary: int) -> list[TokenizedExample]:
    rows, start = [], 1
    for number, length in enumerate(PROBE_LENGTHS):
        ids = tuple(token % vocabulary for token in range(start, start + length))
        rows.append(TokenizedExample(f"{number:016x}", "trial", ids, (IGNORE_INDEX,) * length))
        start += length
    return rows


def _concatenate_rows(first: TokenizedExample, second: TokenizedExample) -> TokenizedExample:
    return TokenizedExample(first.id, first.source, first.input_ids + second.input_ids, first.labels + second.labels)


def _logits(model: PreTrainedModel, batch: dict[str, Tensor]) -> Tensor:
    there = next(model.parameters()).device
    logits: Tensor = model(**model_inputs({name: tensor.to(there) for name, tensor in batch.items()})).logits
    return logits


def _max_abs_difference(first: Tensor, second: Tensor) -> float:
    return float((first - second).abs().max())
