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
from harness.training.collator import IGNORED


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


def trained_logits(model: nn.Module, batch: Mapping[str, Tensor], core: nn.Module | None = None) -> Tensor:
    """The logits that predict the N trained tokens of a batch, in the order of its rows: (N, V), with their graph.

    batch: as `Collator` makes it. core: the causal language model (or peft model) that owns the head, where `model`
    wraps it. Raises HarnessError when the model has no head.
    """
    head = (core or model).get_output_embeddings()  # type: ignore[operator]
    if head is None:
        raise HarnessError("model.path", "the model has no output embeddings", "give a causal language model")
    with only_at(head, trained(batch["labels"])):
        return model(**model_inputs(batch)).logits[0]


def targets(labels: Tensor) -> Tensor:
    """The N trained tokens of a batch's labels of shape (B, T), in the order of its rows: (N,)."""
    return labels[:, 1:][labels[:, 1:] != IGNORED]


def summed_nll(model: nn.Module, core: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
    """Summed negative log-likelihood of the trained tokens of a batch, in nats, as a float32 scalar with its graph.

    model: what is called; it may wrap `core`, which owns the head. batch: as `Collator` makes it. One without a trained
    token gives 0, connected to the weights. Raises HarnessError when the model has no head.
    """
    return nll_of(trained_logits(model, batch, core), batch["labels"])


def nll_of(logits: Tensor, labels: Tensor) -> Tensor:
    """The same sum from what `trained_logits` gave. labels: (B, T)."""
    return functional.cross_entropy(logits.float(), targets(labels).to(logits.device), reduction="sum")


def model_inputs(batch: Mapping[str, Tensor]) -> dict[str, Any]:
    """What the model is called with: the batch without its labels, and without a cache, which training never reads."""
    return {**{name: tensor for name, tensor in batch.items() if name != "labels"}, "use_cache": False}
