"""The rows of a batch that is being generated: rows leave, new ones join, and each step appends a token to all.

The rows of a cache end at the same column, so every row is padded at the left. That holds for full attention, and for
sliding windows, whose layers have the last columns only:

    columns      0  1  2  3  4            0  1  2  3  4  5
    row a        a  a  a  a  a     →      -  c  c  c  c  c     a has ended; c, a longer one, takes its place
    row b        -  -  b  b  b            -  -  -  b  b  b
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional
from transformers import DynamicCache, PreTrainedConfig
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from harness.evaluation.padding_probe import forward_left_padded, pad_left
from harness.model.output_head import logits_at
from harness.model.row_attention import row_attention, supports_row_attention

SPARE_COLUMNS = 32
"""Columns that a layer of the cache has in reserve, so that not every token copies all keys and values."""


class UncachedRows:
    """Rows of a model without a cache: each step computes them from their beginning.

    Attributes:
        can_join: Whether rows can join others.
    """

    can_join = True

    def __init__(self, model: Any, pad_id: int) -> None:
        self._model, self._pad_id = model, pad_id
        self._rows: list[list[int]] = []

    def keep(self, rows: Sequence[int]) -> None:
        """Keep the rows with these indices only."""
        self._rows = [self._rows[row] for row in rows]

    def join(self, prompts: Sequence[Sequence[int]]) -> Tensor:
        """Append rows, and return the logits of their next tokens, (B, V)."""
        self._rows += map(list, prompts)
        return self._logits(self._rows[len(self._rows) - len(prompts) :])

    def step(self, tokens: Sequence[int], live: Sequence[bool]) -> Tensor:
        """Append a token to each live row, and return the logits of the next tokens, (B, V)."""
        for row, token, is_live in zip(self._rows, tokens, live, strict=True):
            row += [token] * is_live
        return self._logits(self._rows)

    def _logits(self, rows: Sequence[Sequence[int]]) -> Tensor:
        device = next(self._model.parameters()).device
        ids, mask = (tensor.to(device) for tensor in pad_left(rows, self._pad_id))  # (B, T)
        is_padded = _differ_in_length(rows)
        with _head_at_last(self._model, ids):
            output = forward_left_padded(self._model, ids, mask, None, use_cache=False, is_padded=is_padded)
        logits: Tensor = output.logits.reshape(len(rows), -1)
        return logits


class CachedRows:
    """Rows of a model with a cache of keys and values.

    Their mask is on the host, where it decides what is kept, so that no step waits for the device.
    """

    def __init__(self, model: Any, pad_id: int, *, lines: bool) -> None:
        """Start without rows.

        Args:
            model: A causal language model.
            pad_id: Token that pads the rows at the left.
            lines: Whether the model separates rows on one line; see `BatchSupport`.
        """
        self._model, self._pad_id, self._lines = model, pad_id, lines
        self._device = next(model.parameters()).device
        self._cache: Any = None
        self._mask = np.empty((0, 0), np.int64)  # (B, T)

    @property
    def can_join(self) -> bool:
        """Whether rows can join others: every layer has keys and values of full attention or of a sliding window."""
        return _has_standard_layers(self._cache)

    def keep(self, rows: Sequence[int]) -> None:
        """Keep the rows with these indices only, and no column that is padding in all of them."""
        if len(rows) == len(self._mask):
            return
        if not rows:
            self._cache, self._mask = None, self._mask[:0, :0]
            return
        self._cache.reorder_cache(torch.tensor(rows, device=self._device))
        self._mask = self._mask[list(rows)]
        if self.can_join:
            self._mask = self._mask[:, int(self._mask.any(0).argmax()) :]
            for layer in self._cache.layers:
                _set_columns(layer, self._mask.shape[1])

    def join(self, prompts: Sequence[Sequence[int]]) -> Tensor:
        """Append rows, and return the logits of their next tokens, (B, V)."""
        cache, mask, logits = self._prefill(prompts)
        if self._cache is None:
            self._cache, self._mask = cache, mask
            return logits
        columns = max(self._mask.shape[1], mask.shape[1])
        for layer, new_layer in zip(self._cache.layers, cache.layers, strict=True):
            _set_columns(layer, columns)
            _set_columns(new_layer, columns)
            layer.keys = torch.cat([layer.keys, new_layer.keys])
            layer.values = torch.cat([layer.values, new_layer.values])
        self._mask = np.concatenate(
            [np.pad(part, ((0, 0), (columns - part.shape[1], 0))) for part in (self._mask, mask)]
        )
        return logits

    def step(self, tokens: Sequence[int], live: Sequence[bool]) -> Tensor:
        """Append a token to each row, masked in rows that are not live, and return the logits (B, V)."""
        self._mask = np.concatenate([self._mask, np.array(live, np.int64)[:, None]], axis=1)
        output = forward_left_padded(
            self._model,
            torch.tensor(tokens, device=self._device)[:, None],
            self._to_device(self._mask),
            self._cache,
            use_cache=True,
            is_padded=not bool(self._mask.all()),
        )
        self._cache = output.past_key_values
        logits: Tensor = output.logits.reshape(len(tokens), -1)
        return logits

    def _to_device(self, mask: NDArray[np.int64]) -> Tensor:
        return torch.from_numpy(mask).to(self._device)

    def _prefill(self, prompts: Sequence[Sequence[int]]) -> tuple[Any, NDArray[np.int64], Tensor]:
        """Return the cache, the mask (B, T), and the logits of the next tokens (B, V) of new rows."""
        ids, _ = pad_left(prompts, self._pad_id)  # (B, T)
        lengths = np.array([len(prompt) for prompt in prompts])
        mask = (np.arange(lengths.max()) >= (lengths.max() - lengths)[:, None]).astype(np.int64)  # (B, T)
        is_padded, cache = _differ_in_length(prompts), _create_cache(self._model)
        if (
            is_padded
            and self._lines
            and _has_full_attention(cache)
            and supports_row_attention(self._model, len(ids[0]))
        ):
            return cache, mask, self._prefill_line(prompts, cache)
        ids = ids.to(self._device)
        with _head_at_last(self._model, ids):
            output = forward_left_padded(
                self._model, ids, self._to_device(mask), cache, use_cache=True, is_padded=is_padded
            )
        return output.past_key_values, mask, output.logits.reshape(len(prompts), -1)

    def _prefill_line(self, prompts: Sequence[Sequence[int]], cache: Any) -> Tensor:
        """Compute the prompts on one line, pad their keys and values, and return the logits (B, V)."""
        lengths = [len(prompt) for prompt in prompts]
        ids = torch.tensor([[token for prompt in prompts for token in prompt]], device=self._device)  # (1, T)
        positions = torch.tensor([[index for length in lengths for index in range(length)]], device=self._device)
        last = torch.zeros_like(ids, dtype=torch.bool)
        last[0, torch.tensor(lengths).cumsum(0) - 1] = True
        with logits_at(self._model, last), row_attention(self._model):
            output = self._model(input_ids=ids, position_ids=positions, past_key_values=cache, use_cache=True)
        for layer in cache.layers:
            for name in ("keys", "values"):
                rows = getattr(layer, name).split(lengths, 2)  # (1, heads, t, D) each
                setattr(layer, name, torch.cat([_fit_columns(row, max(lengths)) for row in rows]))
        logits: Tensor = output.logits[0]
        return logits


class _ReservingLayer(DynamicLayer):
    """A layer of full attention that writes new columns into reserved memory."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._buffers: tuple[Tensor, Tensor] | None = None

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Append keys and values, (B, heads, t, D) each, and return all of them."""
        if self.keys is None or self.values is None or self.keys.numel() == 0:
            first: tuple[Tensor, Tensor] = super().update(key_states, value_states, *args, **kwargs)
            return first
        used, columns = self.keys.shape[2], self.keys.shape[2] + key_states.shape[2]
        buffers = self._buffers
        if buffers is None or self.keys.data_ptr() != buffers[0].data_ptr() or columns > buffers[0].shape[2]:
            buffers = self._buffers = (_reserve(self.keys, columns), _reserve(self.values, columns))
        buffers[0][:, :, used:columns] = key_states
        buffers[1][:, :, used:columns] = value_states
        self.keys, self.values = buffers[0][:, :, :columns], buffers[1][:, :, :columns]
        return self.keys, self.values


def _reserve(states: Tensor, columns: int) -> Tensor:
    """Return memory for so many columns and the spare ones, with a copy of the states."""
    buffer = states.new_empty((*states.shape[:2], columns + SPARE_COLUMNS, states.shape[3]))
    buffer[:, :, : states.shape[2]] = states
    return buffer


def _differ_in_length(rows: Sequence[Sequence[int]]) -> bool:
    return len({len(row) for row in rows}) > 1


def _create_cache(model: Any) -> Any:
    """Return an empty cache of the model's layer types; None if the model creates its own."""
    if not isinstance(getattr(model, "config", None), PreTrainedConfig):
        return None
    cache = DynamicCache(config=model.config)
    if not _has_standard_layers(cache):
        return None
    cache.layers = [_ReservingLayer() if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache


def _has_standard_layers(cache: Any) -> bool:
    layers = getattr(cache, "layers", ())
    standard = (DynamicLayer, _ReservingLayer, DynamicSlidingWindowLayer)
    return bool(layers) and all(type(layer) in standard for layer in layers)


def _has_full_attention(cache: Any) -> bool:
    return _has_standard_layers(cache) and not any(
        isinstance(layer, DynamicSlidingWindowLayer) for layer in cache.layers
    )


def _set_columns(layer: Any, columns: int) -> None:
    """Give a layer so many columns; a sliding window has the last ones only."""
    if isinstance(layer, DynamicSlidingWindowLayer):
        layer.cumulative_length = columns
        columns = min(columns, layer.sliding_window - 1)
    layer.keys, layer.values = _fit_columns(layer.keys, columns), _fit_columns(layer.values, columns)


def _fit_columns(states: Tensor, columns: int) -> Tensor:
    """Cut or pad keys or values, (B, heads, T, D), at the left; padding is masked."""
    if states.shape[2] >= columns:
        return states[:, :, states.shape[2] - columns :]
    return functional.pad(states, (0, 0, columns - states.shape[2], 0))


def _head_at_last(model: Any, ids: Tensor) -> Any:
    """Return the context in which the output head is applied to the last column only."""
    if ids.shape[1] == 1:
        return nullcontext()
    last = torch.zeros_like(ids, dtype=torch.bool)
    last[:, -1] = True
    return logits_at(model, last)
