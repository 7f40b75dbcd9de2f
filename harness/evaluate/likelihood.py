"""How likely a model holds the trained tokens of rows, and how far another model is from it there."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

import torch

from harness.contracts import Row
from harness.evaluate.head import head_at

if TYPE_CHECKING:
    from transformers import PreTrainedModel

LOGITS = 1 << 28
"""Logits held at once when likelihoods are taken: 1 GiB in float32."""


def response_nll(model: PreTrainedModel, rows: Sequence[Row], pad: int) -> list[float]:
    """For each row the summed negative log-likelihood of its trained tokens, in nats.

    rows: one batch, padded here at the right with the token `pad` and masked. Each has `loss_tokens` > 0.
    The log-softmax is taken in float32, the sum in float64. Builds logits at the trained positions only.
    """
    batch = _Batch(rows, pad)
    logits = batch.logits(model)  # (N, V)
    targets = batch.targets.to(logits.device)  # (N,)
    losses = logits.logsumexp(-1) - logits.gather(-1, targets[:, None])[:, 0]  # (N,)
    return [float(part.sum()) for part in batch.per_row(losses)]


def response_divergence(
    model: PreTrainedModel, base: AbstractContextManager[Any], rows: Sequence[Row], pad: int
) -> list[tuple[float, int]]:
    """For each row the summed KL(base || model) over its trained tokens in nats, and where both agree on the likeliest.

    base: a context within which its target is the base model, e.g. the same one with its adapter off.
    Exact, over the whole vocabulary at every trained position: sum_v p_base(v) (log p_base(v) - log p_model(v)), the
    forward direction (as in Shenfeld et al., 2025, arXiv:2509.04259), log-softmax in float32, sums in float64.
    Costs a forward pass of each model, and twice the logits. For the rest as `response_nll`.
    """
    batch = _Batch(rows, pad)
    ours = batch.logits(model).log_softmax(-1)  # (N, V)
    with base as reference:
        theirs = batch.logits(reference).log_softmax(-1)  # (N, V)
    theirs = theirs.to(ours.device)
    # A token that the base rules out (-inf) adds nothing; left alone it would be 0 * inf.
    terms = torch.where(theirs > -torch.inf, theirs.exp() * (theirs - ours), 0.0)
    apart = terms.double().sum(-1)  # (N,)
    agreed = ours.argmax(-1) == theirs.argmax(-1)  # (N,)
    parts = zip(batch.per_row(apart), batch.per_row(agreed), strict=True)
    # Rounding can leave a sum of nothings a little below zero, which no divergence is.
    return [(max(float(one.sum()), 0.0), int(same.sum())) for one, same in parts]


class _Batch:
    """Rows side by side. The last token of a row is only foretold, so it is not fed."""

    def __init__(self, rows: Sequence[Row], pad: int) -> None:
        longest = max(len(row.input_ids) for row in rows) - 1
        self._ids = torch.full((len(rows), longest), pad)  # (B, T)
        self._mask = torch.zeros((len(rows), longest), dtype=torch.long)  # (B, T)
        labels = torch.full((len(rows), longest), -100)  # (B, T): of the token after each
        for index, row in enumerate(rows):
            length = len(row.input_ids) - 1
            self._ids[index, :length] = torch.tensor(row.input_ids[:-1])
            self._mask[index, :length] = 1
            labels[index, :length] = torch.tensor(row.labels[1:])
        self._wanted = labels != -100  # (B, T)
        self.targets = labels[self._wanted]  # (N,), row after row

    def logits(self, model: PreTrainedModel) -> torch.Tensor:
        """(N, V) in float32, at the positions before trained tokens."""
        device = next(model.parameters()).device
        with torch.no_grad(), head_at(model, self._wanted):
            output = model(input_ids=self._ids.to(device), attention_mask=self._mask.to(device), use_cache=False)
        return output.logits[0].float()

    def per_row(self, values: torch.Tensor) -> Sequence[torch.Tensor]:
        """One value a trained token, (N,), as one float64 tensor a row."""
        return values.double().cpu().split(self._wanted.sum(1).tolist())
