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
from harness.train.collate import IGNORED


def trained(labels: Tensor) -> Tensor:
    """Which positions predict a trained token. labels: (B, T), unshifted. Returns booleans of shape (B, T)."""
    mask = torch.zeros_like(labels, dtype=torch.bool)
    mask[:, :-1] = labels[:, 1:] != IGNORED
    return mask


@contextmanager
def only_at(head: nn.Module, mask: Tensor) -> Iterator[None]:
    """Within it, `head` (a model's output embeddings) is applied to the hidden states of the masked positions alone.

    mask: booleans of shape (B, T) with N of them true. The model's logits then have the shape (1, N, V), in the order
    of the rows; everything else of its forward pass, scaling and capping of logits too, stays as the model wrote it.
    """

    def select(module: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        hidden = arguments[0]  # (B, T, H)
        return (hidden[mask.to(hidden.device)].unsqueeze(0), *arguments[1:])

    handle = head.register_forward_pre_hook(select)
    try:
        yield
    finally:
        handle.remove()


def summed_nll(model: nn.Module, core: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
    """Summed negative log-likelihood of the trained tokens of a batch, in nats, as a float32 scalar with its graph.

    model: what is called; it may wrap `core`, the causal language model (or peft model) that owns the head.
    batch: as `Collator` makes it. A batch without a trained token gives 0, connected to the weights.
    Raises HarnessError when the model has no head.
    """
    head = core.get_output_embeddings()  # type: ignore[operator]
    if head is None:
        raise HarnessError("model.path", "the model has no output embeddings", "give a causal language model")
    labels = batch["labels"]
    mask = trained(labels)
    with only_at(head, mask):
        logits = model(**model_inputs(batch)).logits[0]  # (N, V)
    return _cross_entropy(logits, labels, mask)


def nll_of_logits(logits: Tensor, labels: Tensor) -> Tensor:
    """The same sum from full logits of shape (B, T, V), for when something else needs them anyway."""
    mask = trained(labels)
    return _cross_entropy(logits[mask], labels, mask)


def model_inputs(batch: Mapping[str, Tensor]) -> dict[str, Any]:
    """What the model is called with: the batch without its labels, and without a cache, which training never reads."""
    return {**{name: tensor for name, tensor in batch.items() if name != "labels"}, "use_cache": False}


def _cross_entropy(logits: Tensor, labels: Tensor, mask: Tensor) -> Tensor:
    targets = labels[:, 1:][mask[:, :-1]]  # (N,)
    return functional.cross_entropy(logits.float(), targets.to(logits.device), reduction="sum")
