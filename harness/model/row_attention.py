"""Attention without padding: the rows of a batch are on one line, and each row attends to itself alone.

    input_ids      a0  a1  a2  b0  b1          linear layers and norms see real tokens only
    position_ids    0   1   2   0   1          a row starts where the position is 0
    attention      └── a ───┘  └ b ─┘          one causal attention for each row, without a mask

On a line of T tokens a mask would have T² entries, most of them for pairs of different rows. Any other batch (padded,
or with a cache of keys and values) gets transformers' sdpa attention, so a model may keep this attention throughout.

Rows that begin alike may share their beginning. A branch starts where the position is neither 0 nor the next one. It
attends to the tokens of its row before that position, and to itself:

    input_ids      q0  q1  x2  x3  y2          two rows: q0 q1 x2 x3, and q0 q1 y2
    position_ids    0   1   2   3   2          y2 attends to q0, q1 and y2

On a CPU each row is one call of the attention kernel. On a GPU a call costs more than a short row, so rows of similar
length are padded on the right for the attention alone. Under a causal attention no token attends to that padding:

    row 0          a0  a1  a2                  one causal call for a and b
    row 1          b0  b1   .

Rows are found once for each batch, and not in every layer.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from harness.model.position_limit import config_as_dict
from harness.model.unpadded_rows import attention_window

NAME = "harness_rows"
"""The name under which transformers knows this attention."""

DEVICE_TYPES = ("cpu", "cuda")
"""Devices on which a model can get this attention."""

MAX_PADDING = 2
"""A row is padded to at most this many times its length."""


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
    rows = rows_of_line(positions)
    attend = _attend_to_each_row if query.device.type == "cpu" else _attend_to_padded_rows
    output = attend(query, key, value, rows, dropout, scaling)  # (1, T, heads, D)
    return output.contiguous(), None


def _attend_to_each_row(
    query: Tensor, key: Tensor, value: Tensor, rows: LineRows, dropout: float, scaling: float | None
) -> Tensor:
    """Return the attention of a line, (1, T, heads, D), with one call for each row or branch."""
    outputs = []
    for span in rows.spans:
        keys, values, mask = key[:, :, span.start : span.end], value[:, :, span.start : span.end], None
        if span.prefix_end > span.prefix_start:
            keys = torch.cat([key[:, :, span.prefix_start : span.prefix_end], keys], 2)
            values = torch.cat([value[:, :, span.prefix_start : span.prefix_end], values], 2)
            mask = _branch_mask(span.end - span.start, keys.shape[2], query.device)
        queries = query[:, :, span.start : span.end]
        outputs.append(
            functional.scaled_dot_product_attention(
                queries, keys, values, attn_mask=mask, dropout_p=dropout, scale=scaling, is_causal=mask is None
            )
        )
    return torch.cat(outputs, 2).transpose(1, 2)


def _attend_to_padded_rows(
    query: Tensor, key: Tensor, value: Tensor, rows: LineRows, dropout: float, scaling: float | None
) -> Tensor:
    """Return the attention of a line, (1, T, heads, D), with one call for all rows of similar length."""
    groups, order = rows.padded_groups(query.device)
    flat = [tensor[0].transpose(0, 1) for tensor in (query, key, value)]  # (T, heads, D) each
    outputs = []
    for group in groups:
        queries, keys, values = (
            tensor.index_select(0, group.token_of_slot).unflatten(0, group.shape).transpose(1, 2) for tensor in flat
        )  # (R, heads, L, D) each
        output = functional.scaled_dot_product_attention(
            queries, keys, values, dropout_p=dropout, scale=scaling, is_causal=True
        )
        outputs.append(output.transpose(1, 2).flatten(0, 1).index_select(0, group.slot_of_token))
    return torch.cat(outputs).index_select(0, order).unsqueeze(0)


@dataclass(frozen=True)
class LineSpan:
    """Tokens `start` to `end` of a line, which attend to the tokens `prefix_start` to `prefix_end` and to themselves.

    The prefix is empty for a row, and the shared beginning of its row for a branch.
    """

    start: int
    end: int
    prefix_start: int
    prefix_end: int

    def visible_tokens(self) -> Tensor:
        """Return the tokens of the prefix and of the span, in order."""
        return torch.cat([torch.arange(self.prefix_start, self.prefix_end), torch.arange(self.start, self.end)])

    def __len__(self) -> int:
        """Return the number of visible tokens."""
        return self.prefix_end - self.prefix_start + self.end - self.start


def find_spans(positions: Tensor) -> list[LineSpan]:
    """Return the rows and branches of a line, in order, from its positions (T,), which are copied to the host once."""
    values: list[int] = positions.tolist()
    starts = [0, *(index for index in range(1, len(values)) if values[index] != values[index - 1] + 1)]
    spans, row_start = [], 0
    for start, end in zip(starts, [*starts[1:], len(values)], strict=True):
        position = values[start]
        is_row = position == 0 or start == 0
        row_start = start if is_row else row_start
        spans.append(LineSpan(start, end, row_start, row_start if is_row else row_start + position))
    return spans


@dataclass(frozen=True)
class PaddedRows:
    """Rows and branches of a line, padded on the right to one length.

    Attributes:
        shape: (R, L), rows and the length of the longest one. A branch has the tokens of its prefix too.
        token_of_slot: (R * L,), the token of the line in each slot. Padding holds any token.
        slot_of_token: (n,), the slots of the rows' own tokens, without prefixes and padding.
    """

    shape: tuple[int, int]
    token_of_slot: Tensor
    slot_of_token: Tensor


class LineRows:
    """The rows and branches of a line, as the attention of each layer needs them."""

    def __init__(self, positions: Tensor) -> None:
        """Find the rows of a line from its positions, (1, T)."""
        self.spans = find_spans(positions[0])
        self._padded: dict[torch.device, tuple[list[PaddedRows], Tensor]] = {}

    def padded_groups(self, device: torch.device) -> tuple[list[PaddedRows], Tensor]:
        """Return the rows in groups of similar length, and the place of each token of the line in them, (T,)."""
        if device not in self._padded:
            span_groups = group_by_length(self.spans)
            groups = [_pad_rows(spans, device) for spans in span_groups]
            own_tokens = [torch.arange(span.start, span.end) for spans in span_groups for span in spans]
            self._padded[device] = groups, torch.cat(own_tokens).argsort().to(device)
        return self._padded[device]


def group_by_length(spans: Sequence[LineSpan]) -> list[list[LineSpan]]:
    """Group rows so that none is padded to more than `MAX_PADDING` times its length; the longest ones first."""
    groups: list[list[LineSpan]] = []
    for span in sorted(spans, key=len, reverse=True):
        if groups and len(groups[-1][0]) <= MAX_PADDING * len(span):
            groups[-1].append(span)
        else:
            groups.append([span])
    return groups


def _pad_rows(spans: Sequence[LineSpan], device: torch.device) -> PaddedRows:
    longest = len(spans[0])
    tokens = torch.arange(len(spans) * longest).view(len(spans), longest) % max(span.end for span in spans)
    slots = []
    for row, span in enumerate(spans):
        tokens[row, : len(span)] = span.visible_tokens()
        first_own = span.prefix_end - span.prefix_start
        slots.append(torch.arange(row * longest + first_own, row * longest + len(span)))
    return PaddedRows((len(spans), longest), tokens.flatten().to(device), torch.cat(slots).to(device))


_latest_line: tuple[weakref.ref[Tensor], int, LineRows] | None = None
"""The positions of the latest line, their version and their rows."""


def rows_of_line(positions: Tensor) -> LineRows:
    """Return the rows of a line from its positions, (1, T): every layer of a model asks for the same ones.

    The rows are found again if the tensor is another one, or was changed in place.
    """
    global _latest_line
    if positions.is_inference():  # such a tensor has no version
        return LineRows(positions)
    latest = _latest_line
    if latest is None or latest[0]() is not positions or latest[1] != positions._version:
        latest = weakref.ref(positions), positions._version, LineRows(positions)
        _latest_line = latest
    return latest[2]


@lru_cache(maxsize=256)
def _branch_mask(queries: int, keys: int, device: torch.device) -> Tensor:
    """Return which keys the tokens of a branch attend to, (queries, keys): all but the later tokens of the branch."""
    return torch.ones(queries, keys, dtype=torch.bool, device=device).tril(keys - queries)


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
    """Return whether a model can get this attention: sdpa, without a window shorter than the longest row.

    Whether the model's code separates the rows of a line is for `packing_isolation` to verify.

    Args:
        model: The model; may be a PEFT model.
        longest_row: Number of tokens.
    """
    return (
        getattr(model.config, "_attn_implementation", None) == "sdpa"
        and next(model.parameters()).device.type in DEVICE_TYPES
        and attention_window(config_as_dict(model.config)) >= longest_row
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
