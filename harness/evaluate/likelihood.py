"""How likely the model holds the trained tokens of a row: its reference response."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from harness.contracts import Row
from harness.evaluate.head import head_at

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def response_nll(model: PreTrainedModel, rows: Sequence[Row], pad: int) -> list[float]:
    """For each row the summed negative log-likelihood of its trained tokens, in nats.

    rows: one batch, padded here at the right with the token `pad` and masked. Each has `loss_tokens` > 0.
    The log-softmax is taken in float32, the sum in float64. Builds logits at the trained positions only.
    """
    device = next(model.parameters()).device
    longest = max(len(row.input_ids) for row in rows)
    ids = torch.full((len(rows), longest), pad)  # (B, T)
    labels = torch.full((len(rows), longest), -100)  # (B, T)
    mask = torch.zeros((len(rows), longest), dtype=torch.long)  # (B, T)
    for index, row in enumerate(rows):
        length = len(row.input_ids)
        ids[index, :length] = torch.tensor(row.input_ids)
        labels[index, :length] = torch.tensor(row.labels)
        mask[index, :length] = 1
    wanted = torch.zeros_like(ids, dtype=torch.bool)  # where the next token is a trained one
    wanted[:, :-1] = labels[:, 1:] != -100
    targets = labels[:, 1:][wanted[:, :-1]].to(device)  # (N,)
    with torch.no_grad(), head_at(model, wanted):
        output = model(input_ids=ids.to(device), attention_mask=mask.to(device), use_cache=False)
    logits = output.logits[0].float()  # (N, V)
    losses = logits.logsumexp(-1) - logits.gather(-1, targets.to(logits.device)[:, None])[:, 0]  # (N,)
    per_row = losses.double().cpu().split(wanted.sum(1).tolist())
    return [float(part.sum()) for part in per_row]
