"""The loss of a batch: negative log-likelihood of the trained tokens, and of nothing else.

Knows which positions the head must see. The vocabulary is the widest thing in a small model, so applying the head to
prompts and padding would be a good part of a step's work, and of its memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from harness.errors import HarnessError
from harness.training.collator import IGNORE_INDEX


def target_mask(labels: Tensor) -> Tensor:
    """Which positions predict a trained token. labels: (B, T), unshifted. Returns booleans of shape (B, T)."""
    mask = torch.zeros_like(labels, dtype=torch.bool)
    mask[:, :-1] = labels[:, 1:] != IGNORE_INDEX
    return mask


@contextmanager
def logits_at(output_layer: nn.Module, mask: Tensor) -> Iterator[None]:
    """Within it, `output_layer` (a model's output embeddings) is applied to the hidden states of the masked positions
    alone.

    mask: booleans of shape (B, T) with N of them true. The model's logits then have the shape (1, N, V), in the order
    of the rows; everything else of its forward pass, scaling and capping of logits too, stays as the model wrote it.
    """

    def select(module: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        hidden = arguments[0]  # (B, T, H)
        return (hidden[mask.to(hidden.device)].unsqueeze(0), *arguments[1:])

    handle = output_layer.register_forward_pre_hook(select)
    try:
        yield
    finally:
        handle.remove()


def target_logits(model: nn.Module, batch: Mapping[str, Tensor], causal_lm: nn.Module | None = None) -> Tensor:
    """The logits that predict the N trained tokens of a batch, in the order of its rows: (N, V), with their graph.

    batch: as `Collator` makes it. causal_lm: the causal language model (or peft model) that owns the head, where
    `model` wraps it. Raises HarnessError when the model has no head.
    """
    head = (causal_lm or model).get_output_embeddings()  # type: ignore[operator]
    if head is None:
        raise HarnessError("model.path", "the model has no output embeddings", "give a causal language model")
    with logits_at(head, target_mask(batch["labels"])):
        return model(**model_inputs(batch)).logits[0]


def target_tokens(labels: Tensor) -> Tensor:
    """The N trained tokens of a batch's labels of shape (B, T), in the order of its rows: (N,)."""
    return labels[:, 1:][labels[:, 1:] != IGNORE_INDEX]


def summed_nll(model: nn.Module, causal_lm: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
    """Summed negative log-likelihood of the trained tokens of a batch, in nats, as a float32 scalar with its graph.

    model: what is called; it may wrap `causal_lm`, which owns the head. batch: as `Collator` makes it. One without a
    trained token gives 0, connected to the weights. Raises HarnessError when the model has no head.
    """
    return nll_from_logits(target_logits(model, batch, causal_lm), batch["labels"])


def nll_from_logits(logits: Tensor, labels: Tensor) -> Tensor:
    """The same sum from what `target_logits` gave. labels: (B, T)."""
    return functional.cross_entropy(logits.float(), target_tokens(labels).to(logits.device), reduction="sum")


def model_inputs(batch: Mapping[str, Tensor]) -> dict[str, Any]:
    """What the model is called with: the batch without its labels, and without a cache, which training never reads."""
    return {**{name: tensor for name, tensor in batch.items() if name != "labels"}, "use_cache": False}
