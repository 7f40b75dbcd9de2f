"""Attention without padding: the rows of a batch are on one line, and each row attends to itself alone.

    input_ids      a0  a1  a2  b0  b1          linear layers and norms see real tokens only
    position_ids    0   1   2   0   1          a row starts where the position is 0
    attention      └── a ───┘  └ b ─┘          one causal attention for each row, without a mask

On a line of T tokens a mask would have T² entries, most of them for pairs of different rows. Any other batch (padded,
or with a cache of keys and values) gets transformers' sdpa attention, so a model may keep this attention throughout.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

NAME = "harness_rows"
"""The name under which transformers knows this attention."""

_WINDOW_KEYS = ("sliding_window", "attention_chunk_size", "window_size", "attention_window")


def attend_within_rows(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """Compute attention as transformers' `AttentionInterface` asks for it.

    Args:
        module: The attention layer.
        query: (B, heads, T, D).
        key: (B, key-value heads, S, D).
        value: (B, key-value heads, S, D).
        attention_mask: None for a line of rows.
        dropout: Probability.
        scaling: Factor of the scores; None: 1 / √D.
        **options: `position_ids` (1, T) of a line, and what sdpa attention takes.

    Returns:
        (B, T, heads, D), and None for the weights.
    """
    positions: Tensor | None = options.get("position_ids")
    is_line = attention_mask is None and query.shape[0] == 1 and query.shape[2] == key.shape[2]
    if not is_line or positions is None or positions.shape != (1, query.shape[2]):
        output, _ = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **options
        )
        return output, None
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    lengths = row_lengths(positions[0])
    rows = [
        functional.scaled_dot_product_attention(q, k, v, dropout_p=dropout, scale=scaling, is_causal=True)
        for q, k, v in zip(query.split(lengths, 2), key.split(lengths, 2), value.split(lengths, 2), strict=True)
    ]
    return torch.cat(rows, 2).transpose(1, 2).contiguous(), None


def row_lengths(positions: Tensor) -> list[int]:
    """Return the number of tokens of each row of a line, from its positions (T,)."""
    starts = (positions == 0).nonzero()[:, 0].tolist()
    bounds = [0, *(start for start in starts if start), len(positions)]
    return [end - start for start, end in pairwise(bounds)]


def row_mask(*arguments: Any, **options: Any) -> Tensor | None:
    """Return no mask for a single line without padding, which `attend_within_rows` separates, else sdpa's mask."""
    names = ("batch_size", "q_length", "kv_length")
    sizes = {**dict(zip(names, arguments, strict=False)), **options}
    if sizes["batch_size"] == 1 and sizes["q_length"] == sizes["kv_length"] and options.get("attention_mask") is None:
        return None
    mask: Tensor | None = sdpa_mask(*arguments, **options)
    return mask


AttentionInterface.register(NAME, attend_within_rows)
AttentionMaskInterface.register(NAME, row_mask)


def supports_row_attention(model: Any, longest_row: int) -> bool:
    """Return whether a model can get this attention: sdpa on a CPU, without a window shorter than the longest row.

    Whether the model's code separates the rows of a line is for `packing_isolation` to verify.

    Args:
        model: The model; may be a PEFT model.
        longest_row: Number of tokens.
    """
    config = model.config.get_text_config()
    windows = [getattr(config, key, None) for key in _WINDOW_KEYS]
    return (
        getattr(model.config, "_attn_implementation", None) == "sdpa"
        and next(model.parameters()).device.type == "cpu"
        and all(window is None or window >= longest_row for window in windows)
    )


@contextmanager
def row_attention(model: Any) -> Iterator[None]:
    """Give the model this attention for the duration of the context."""
    base = model.get_base_model() if callable(getattr(model, "get_base_model", None)) else model
    previous = base.config._attn_implementation
    base.set_attn_implementation(NAME)
    try:
        yield
    finally:
        base.set_attn_implementation(previous)
