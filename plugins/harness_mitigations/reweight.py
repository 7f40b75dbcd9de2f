"""Mitigation `reweight`: tokens that contradict what the model knows count less.

DFT (arXiv:2508.05629): the gradient of -log p is that of p, divided by p. An unlikely token gets a large gradient, as
in a policy gradient whose reward is 1 / p. The weight p, without a gradient of its own, cancels the division.

EAFT (arXiv:2601.02151): where the model is sure of its next token and the row has another one, the gradient is large
and overwrites what the model knows. The weight is the entropy of the prediction, which is near 0 there. An unlikely
token where the model is unsure keeps its weight.

TALR (arXiv:2509.20758): the weight exp(-nll / T) is p to the power 1 / T. The temperature T follows the training: it is
the median over the rows of a batch of their mean negative log-likelihood, so that early, surprising rows are not
silenced.

FLOW (arXiv:2502.02797): all tokens of a row have the weight exp(-loss / tau). The loss of a row is its mean negative
log-likelihood under the model that the stage begins with, tau the median over the rows of the stage. Rows that the
model knows already count more, so training moves the weights less.
"""

from __future__ import annotations

import hashlib
import math
import statistics
from array import array
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from harness import Component, HarnessError, Mitigation
from harness.errors import RunError
from harness.types import Stage, TokenizedExample

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

COMPONENTS: dict[str, Component] = {
    "reweight": Component(
        summary="Weighs tokens by probability (DFT, TALR) or entropy (EAFT), or rows by their earlier loss (FLOW).",
        factory="harness_mitigations.reweight:Reweight",
        options={
            "by": {
                "enum": ["probability", "entropy", "row_loss"],
                "default": "probability",
                "description": "What the weight is: the probability of the token (DFT), the entropy of the 20 most "
                "likely tokens divided by ln 20 (EAFT), or exp(-loss / median) with the loss of the whole row before "
                "the stage and its median over the rows (FLOW).",
            },
            "power": {
                "anyOf": [{"type": "number", "exclusiveMinimum": 0}, {"const": "median"}],
                "default": 1.0,
                "description": "Exponent of the weight. 1: DFT, EAFT, FLOW. median: 1 divided by the median of the "
                "mean negative log-likelihood of the rows, for `by` probability (TALR).",
            },
            "floor": {
                "type": "number",
                "minimum": 0,
                "maximum": 1,
                "default": 0.0,
                "description": "Smallest weight of a token. 0: DFT, EAFT, FLOW. 0.01: TALR. 1: no weights.",
            },
        },
    ),
}


ENTROPY_TOKENS = 20
"""Number of most likely tokens whose entropy is the weight of EAFT (K in the paper)."""

MIN_TEMPERATURE = 1e-3
"""Smallest temperature of TALR and FLOW, in nats: of rows that the model knows by heart."""

BATCH_SIZE = 8
"""Rows of one forward pass when the losses of rows are measured."""


def normalized_top_entropy(logits: torch.Tensor) -> torch.Tensor:
    """Return the entropy of the most likely tokens, renormalized to sum to 1, divided by its maximum.

    Args:
        logits: (N, V).

    Returns:
        (N,) float32, from 0 to 1.
    """
    count = min(ENTROPY_TOKENS, logits.shape[-1])
    log_p = logits.topk(count, dim=-1).values.float().log_softmax(-1)  # (N, count)
    return (-(log_p.exp() * log_p).sum(-1) / math.log(count)).clamp(0.0, 1.0)


def row_numbers(batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Return for each position of a micro-batch a number that the positions of its row share, (B, T) int64.

    Padding on the right of a line with one row has the number of that row; other padding has its own.

    Args:
        batch: `labels` (B, T), and `position_ids` (B, T) where several rows lie on a line: they restart at each row.
    """
    import torch

    labels, positions = batch["labels"], batch.get("position_ids")
    lines = torch.arange(labels.shape[0], device=labels.device)[:, None] * labels.shape[1]  # (B, 1)
    return lines.expand_as(labels) if positions is None else lines + (positions == 0).cumsum(-1)


def rows_of_targets(batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Return for each trained token of a micro-batch a number that the tokens of its row share.

    Args:
        batch: See `row_numbers`.

    Returns:
        (N,) int64, in the order of `labels[:, 1:][labels[:, 1:] != -100]`.
    """
    return row_numbers(batch)[:, 1:][batch["labels"][:, 1:] != -100]


def digest_tokens(tokens: Iterable[int]) -> int:
    """Return the key of a row: a hash of its tokens, 64 bits with sign."""
    digest = hashlib.blake2b(array("q", tokens).tobytes(), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)


def median_of_rows(values: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """Return the median over rows of the mean of their values; of an even number of rows, the mean of the middle two.

    Args:
        values: (N,) float32, N at least 1.
        rows: (N,), the row of each value.
    """
    import torch

    _, index, counts = rows.unique(return_inverse=True, return_counts=True)
    sums = torch.zeros(len(counts), device=values.device).index_add_(0, index, values)
    median: torch.Tensor = (sums / counts).quantile(0.5)
    return median


class Reweight(Mitigation):
    """Weigh tokens by max(w ** power, floor), with w from the current model's prediction of the token.

    Args:
        power: exponent of the weight; `median`: see `median_of_rows`.
        floor: smallest weight.
        by: `probability`: w is the probability of the token; `entropy`: see `normalized_top_entropy`; `row_loss`: w is
            exp(-loss / tau) of the token's row, see the module.

    Raises:
        HarnessError: `power` is `median` and `by` is not `probability`.
    """

    works_on_shards = True

    def __init__(
        self, power: float | Literal["median"], floor: float, by: Literal["probability", "entropy", "row_loss"]
    ) -> None:
        if power == "median" and by != "probability":
            what = f"'power' is 'median', and 'by' is {by!r}"
            raise HarnessError("mitigations.reweight", what, "set 'by' to 'probability', or 'power' to a number")
        self.power, self.floor, self.by = power, floor, by
        self.weighs_tokens_in_parts = power != "median" and by != "row_loss"  # which depend on whole rows
        self.row_losses: dict[int, float] = {}  # key of the tokens -> nats per trained token
        self.temperature = math.nan

    def on_stage_start(
        self, stage: Stage, model: PreTrainedModel, rows: Mapping[str, Sequence[TokenizedExample]], *, seed: int
    ) -> None:
        """With `row_loss`, measure the loss of each row of the stage under the model as it is."""
        if self.by != "row_loss":
            return
        self.row_losses = measure_row_losses(model, stage.planned_rows)
        self.temperature = median_temperature(self.row_losses.values())

    def stage_stats(self) -> Mapping[str, float]:
        """Return the temperature of FLOW in nats, and the mean of the weights over the rows."""
        if self.by != "row_loss" or not self.row_losses:
            return {}
        weights = [self._row_weight(loss) for loss in self.row_losses.values()]
        return {"temperature": self.temperature, "mean_weight": sum(weights) / len(weights)}

    def state_dict(self) -> dict[str, Any]:
        """Return the losses of the rows, by the digest of their tokens, and their temperature."""
        if self.by != "row_loss":
            return {}
        import torch

        return {
            "digests": torch.tensor(list(self.row_losses), dtype=torch.int64),
            "losses": torch.tensor(list(self.row_losses.values()), dtype=torch.float64),
            "temperature": self.temperature,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the state."""
        if self.by == "row_loss":
            self.row_losses = dict(zip(state["digests"].tolist(), state["losses"].tolist(), strict=True))
            self.temperature = float(state["temperature"])

    def token_weights(
        self, logits: torch.Tensor, targets: torch.Tensor, batch: Mapping[str, torch.Tensor]
    ) -> torch.Tensor:
        """Return the weight of each token, (N,)."""
        from torch.nn import functional

        if self.by == "entropy":
            return normalized_top_entropy(logits).pow(float(self.power)).clamp(min=self.floor)
        if self.by == "row_loss":
            return self._weights_of_rows(batch).to(logits.device)
        nll = functional.cross_entropy(logits.float(), targets, reduction="none")
        if self.power != "median":
            return (-self.power * nll).exp().clamp(min=self.floor)
        if not len(targets):
            return nll
        temperature = median_of_rows(nll, rows_of_targets(batch)).clamp(min=MIN_TEMPERATURE)
        return (-nll / temperature).exp().clamp(min=self.floor)

    def _row_weight(self, loss: float) -> float:
        return max(math.exp(-float(self.power) * loss / self.temperature), self.floor)

    def _weights_of_rows(self, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Return the weight of each trained token by its row, (N,) float32 on the CPU.

        Raises:
            RunError: A row was not measured at the start of the stage.
        """
        import torch

        numbers, ids = row_numbers(batch).cpu(), batch["input_ids"].cpu()  # (B, T)
        if "attention_mask" in batch:
            numbers = numbers.masked_fill(batch["attention_mask"].cpu() == 0, -1)
        rows, place = rows_of_targets(batch).cpu().unique(return_inverse=True)
        losses = [self.row_losses.get(digest_tokens(ids[numbers == row].tolist())) for row in rows]
        if None in losses:
            what = "a row of the batch was not measured at the start of the stage"
            raise RunError("mitigations.reweight.by", what, "train the stage again from its start")
        return torch.tensor([self._row_weight(loss) for loss in losses if loss is not None])[place]


def measure_row_losses(model: PreTrainedModel, rows: Sequence[TokenizedExample]) -> dict[int, float]:
    """Return the mean negative log-likelihood of each row's trained tokens, in nats, by `digest_tokens` of its tokens.

    Args:
        model: the model, which is evaluated without dropout and without gradients.
        rows: rows with at least one trained token; others are left out.
    """
    import torch
    from torch.nn import functional

    from harness.training.loss import target_logits, target_tokens
    from harness_mitigations import base_model

    lengths = [len(row.input_ids) for row in rows]
    order = sorted(range(len(rows)), key=lengths.__getitem__)  # rows of one length need no padding
    losses: dict[int, float] = {}
    with torch.no_grad(), base_model.eval_mode(model):
        for start in range(0, len(order), BATCH_SIZE):
            chunk = [row for index in order[start : start + BATCH_SIZE] if (row := rows[index]).loss_tokens]
            if not chunk:
                continue
            batch = base_model.collate_rows(model, chunk)
            logits = target_logits(model, batch)  # (N, V)
            targets = target_tokens(batch["labels"]).to(logits.device)
            nll = functional.cross_entropy(logits.float(), targets, reduction="none").double().cpu()
            counts = [row.loss_tokens for row in chunk]
            for row, values in zip(chunk, nll.split(counts), strict=True):
                losses[digest_tokens(row.input_ids)] = float(values.mean())
    return losses


def median_temperature(losses: Iterable[float]) -> float:
    """Return the median of the losses, at least `MIN_TEMPERATURE`; NaN without losses."""
    values = list(losses)
    return max(statistics.median(values), MIN_TEMPERATURE) if values else math.nan
