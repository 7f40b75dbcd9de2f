"""The output layer applied at chosen positions only: over a large vocabulary it costs more than a block does."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from torch import nn

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel


@contextmanager
def head_at(model: PreTrainedModel, positions: torch.Tensor) -> Iterator[None]:
    """Within it, the model's `logits` are (1, N, V): those at the N true `positions`, row after row.

    positions: (B, T), bool. The model's own forward runs, so what it does to hidden states or logits around the
    layer (scaling, soft caps, adapters, tied weights) stays as it is.
    """
    layer = model.get_output_embeddings()
    if not isinstance(layer, nn.Module):
        raise TypeError(f"{type(model).__name__} has no output layer: it is no causal language model")

    def select(_: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        hidden, *rest = inputs  # (B, T, H)
        return hidden[positions.to(hidden.device)].unsqueeze(0), *rest

    handle = layer.register_forward_pre_hook(select)
    try:
        yield
    finally:
        handle.remove()
