"""The task loss of a batch: negative log-likelihood of the trained tokens only, in chunks of their logits.

Labels are not shifted; position t predicts token t + 1. With prompt p, response r and padding -:

    input_ids     p0   p1   r0   r1   -
    labels       -100 -100  r0   r1  -100
    target_mask    0    1    1    0    0      positions whose logits are computed
    target_tokens      r0   r1                what these positions predict
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from harness.model.chunked_logits import ChunkedLogits
from harness.model.output_head import logits_at
from harness.types import IGNORE_INDEX

TokenWeights = Callable[[Tensor, Tensor], Tensor]
"""Called with logits (N, V) and targets (N,); returns the weight of each target, (N,)."""

TokenPenalty = Callable[[Tensor, slice], Tensor]
"""A function of logits (n, V) and their place among the trained tokens; see `Mitigation.token_penalty`."""


def target_mask(labels: Tensor) -> Tensor:
    """Return which positions predict a trained token, as booleans of shape (B, T), from unshifted labels (B, T)."""
    mask = torch.zeros_like(labels, dtype=torch.bool)
    mask[:, :-1] = labels[:, 1:] != IGNORE_INDEX
    return mask


def target_tokens(labels: Tensor) -> Tensor:
    """Return the N trained tokens of unshifted labels (B, T), row by row, with the shape (N,)."""
    return labels[:, 1:][labels[:, 1:] != IGNORE_INDEX]


def target_logits(model: nn.Module, batch: Mapping[str, Tensor], causal_lm: nn.Module | None = None) -> Tensor:
    """Return the logits that predict the N trained tokens of a batch, row by row, with their graph: (N, V).

    Args:
        model: The model to call.
        batch: As `Collator` returns it.
        causal_lm: The causal language model (or PEFT model) that has the output head, if `model` wraps it.

    Raises:
        HarnessError: The model has no output head.
    """
    with logits_at(model if causal_lm is None else causal_lm, target_mask(batch["labels"])):
        logits: Tensor = model(**model_inputs(batch)).logits[0]
    return logits


def chunked_target_logits(
    model: nn.Module, batch: Mapping[str, Tensor], causal_lm: nn.Module | None = None
) -> ChunkedLogits:
    """Return the same logits in chunks: they are computed one after the other. Arguments as in `target_logits`."""
    causal_lm = model if causal_lm is None else causal_lm
    return ChunkedLogits(model, model_inputs(batch), target_mask(batch["labels"]), causal_lm)


def summed_nll(model: nn.Module, causal_lm: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
    """Return the summed negative log-likelihood of a batch's trained tokens, in nats.

    Args:
        model: The model to call; it may wrap `causal_lm`.
        causal_lm: The causal language model that has the output head.
        batch: As `Collator` returns it.

    Returns:
        A float32 scalar with its graph. For a batch without a trained token: 0, connected to the weights.

    Raises:
        HarnessError: The model has no output head.
    """
    return summed_loss(model, causal_lm, batch, {}).total


class SummedLoss:
    """The loss of a batch, summed over its trained tokens, and the parts of it that are logged.

    It is computed in one or more chunks of the logits, by `add_chunk`. Values are float32 scalars in nats.

    Attributes:
        total: What is trained, with its graph: weighted likelihoods and penalties.
        nll: The negative log-likelihoods in `total`, without a graph.
        plain_nll: The same without weights of tokens; None if there are no weights.
        penalties: Name -> the penalty's part of `total`, without a graph.
    """

    def __init__(self, targets: Tensor, penalties: Mapping[str, TokenPenalty], weigh: TokenWeights | None) -> None:
        """Start without a chunk.

        Args:
            targets: (N,), the trained tokens of the batch.
            penalties: Functions that add to the loss of each token, by name.
            weigh: Returns the weights of the likelihoods, which have no gradient; None: all are 1.
        """
        self._targets, self._penalties, self._weigh = targets, penalties, weigh
        zero = torch.zeros((), device=targets.device)
        self.total = self.nll = zero
        self.plain_nll: Tensor | None = None if weigh is None else zero
        self.penalties = dict.fromkeys(penalties, zero)

    @classmethod
    def of_nll(cls, nll: Tensor) -> SummedLoss:
        """Return the loss that consists of summed negative log-likelihoods alone, with their graph."""
        loss = cls(torch.empty(0, dtype=torch.long, device=nll.device), {}, None)
        loss.total, loss.nll = nll, nll.detach()
        return loss

    def add_chunk(self, logits: Tensor, place: slice) -> Tensor:
        """Return the loss of a chunk with its graph, and add its parts. See `ChunkSum`."""
        targets = self._targets[place].to(logits.device)
        if self._weigh is None:
            loss = functional.cross_entropy(logits.float(), targets, reduction="sum")
        else:
            loss, plain_nll = weighted_nll(logits, targets, self._weigh)
            self.plain_nll = plain_nll if self.plain_nll is None else self.plain_nll + plain_nll
        self.nll = self.nll + loss.detach()
        for name, penalty in self._penalties.items():
            value = penalty(logits, place).float().sum()
            self.penalties[name] = self.penalties[name] + value.detach()
            loss = loss + value
        return loss

    def add_penalty(self, name: str, value: Tensor) -> None:
        """Add a penalty of the whole batch, with its graph."""
        self.penalties[name] = self.penalties.get(name, 0.0) + value.detach()
        self.total = self.total + value


def summed_loss(
    model: nn.Module,
    causal_lm: nn.Module,
    batch: Mapping[str, Tensor],
    penalties: Mapping[str, TokenPenalty],
    weigh: TokenWeights | None = None,
) -> SummedLoss:
    """Compute the loss of a batch in chunks of its logits.

    Args:
        model: As in `summed_nll`.
        causal_lm: As in `summed_nll`.
        batch: As in `summed_nll`.
        penalties: As in `SummedLoss`.
        weigh: As in `SummedLoss`.

    Raises:
        HarnessError: The model has no output head.
    """
    loss = SummedLoss(target_tokens(batch["labels"]), penalties, weigh)
    loss.total = chunked_target_logits(model, batch, causal_lm).sum(loss.add_chunk)
    return loss


def loss_from_logits(
    logits: Tensor, batch: Mapping[str, Tensor], penalties: Mapping[str, TokenPenalty], weigh: TokenWeights | None
) -> SummedLoss:
    """Compute the same from all logits of a batch, (N, V): see `target_logits`."""
    loss = SummedLoss(target_tokens(batch["labels"]), penalties, weigh)
    loss.total = loss.add_chunk(logits, slice(0, len(logits)))
    return loss


def weighted_nll(logits: Tensor, targets: Tensor, weigh: TokenWeights) -> tuple[Tensor, Tensor]:
    """Return the summed negative log-likelihood of tokens, with weights and without them, in nats.

    Args:
        logits: (N, V).
        targets: (N,).
        weigh: Returns the weights, which have no gradient.

    Returns:
        The weighted sum with its graph, and the sum without one.
    """
    nll = functional.cross_entropy(logits.float(), targets, reduction="none")  # (N,)
    with torch.no_grad():
        weights = weigh(logits.detach(), targets).to(nll)
    return (weights * nll).sum(), nll.detach().sum()


def model_inputs(batch: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return the arguments of the forward pass: the batch without labels, and no cache, which training never reads."""
    return {**{name: tensor for name, tensor in batch.items() if name != "labels"}, "use_cache": False}
