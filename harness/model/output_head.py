"""Apply a model's output head to chosen positions only.

The vocabulary is the widest dimension of a small model. Applying the head to prompts and padding would cost a good part
of a step's time and memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from harness.errors import HarnessError


def output_head(model: nn.Module) -> nn.Module:
    """Return the module that computes the logits of a causal language model, or of the PEFT model around it.

    Raises:
        HarnessError: The model has no output head.
    """
    head = model.get_output_embeddings()  # type: ignore[operator]
    if not isinstance(head, nn.Module):
        what = f"{type(model).__name__} has no output embeddings"
        raise HarnessError("model.path", what, "give a causal language model")
    return head


@contextmanager
def logits_at(model: nn.Module, positions: Tensor) -> Iterator[None]:
    """Within the context, the model's `logits` have the shape (1, N, V): those at the N true `positions`, row by row.

    The model's own forward pass runs. What it does to hidden states or logits around the head (scaling, soft caps,
    adapters, tied weights) is unchanged.

    Args:
        model: A causal language model, or the PEFT model around it.
        positions: Booleans of shape (B, T).

    Raises:
        HarnessError: The model has no output head.
    """
    head = output_head(model)

    def select(_: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        hidden, *rest = arguments  # (B, T, H)
        return hidden[positions.to(hidden.device)].unsqueeze(0), *rest  # (1, N, H)

    handle = head.register_forward_pre_hook(select)
    try:
        yield
    finally:
        handle.remove()
