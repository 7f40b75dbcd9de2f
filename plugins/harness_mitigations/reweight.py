"""Mitigation `reweight`: tokens that contradict what the model knows count less.

DFT (arXiv:2508.05629): the gradient of -log p is that of p, divided by p. An unlikely token gets a large gradient, as
in a policy gradient whose reward is 1 / p. The weight p, without a gradient of its own, cancels the division.

EAFT (arXiv:2601.02151): where the model is sure of its next token and the row has another one, the gradient is large
and overwrites what the model knows. The weight is the entropy of the prediction, which is near 0 there. An unlikely
token where the model is unsure keeps its weight.

TALR (arXiv:2509.20758): the weight exp(-nll / T) is p to the power 1 / T. The temperature T follows the training: it is
the median over the rows of a batch of their mean negative log-likelihood, so that early, surprising rows are not
silenced.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar, Literal

from harness import Component, HarnessError, Mitigation

if TYPE_CHECKING:
    import torch

COMPONENTS: dict[str, Component] = {
    "reweight": Component(
        summary="Weighs tokens of the loss by their probability (DFT, TALR) or the entropy of the prediction (EAFT).",
        factory="harness_mitigations.reweight:Reweight",
        options={
            "by": {
                "enum": ["probability", "entropy"],
                "default": "probability",
                "description": "What the weight is: the probability of the token (DFT), or the entropy of the 20 most "
                "likely tokens divided by ln 20 (EAFT).",
            },
            "power": {
                "anyOf": [{"type": "number", "exclusiveMinimum": 0}, {"const": "median"}],
                "default": 1.0,
                "description": "Exponent of the weight. 1: DFT, EAFT. median: 1 divided by the median of the mean "
                "negative log-likelihood of the rows, for `by` probability (TALR).",
            },
            "floor": {
                "type": "number",
                "minimum": 0,
                "maximum": 1,
                "default": 0.0,
                "description": "Smallest weight of a token. 0: DFT, EAFT. 0.01: TALR. 1: no weights.",
            },
        },
    ),
}


ENTROPY_TOKENS = 20
"""Number of most likely tokens whose entropy is the weight of EAFT (K in the paper)."""

MIN_TEMPERATURE = 1e-3
"""Smallest temperature of TALR, in nats: of rows that the model knows by heart."""


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


def rows_of_targets(batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Return for each trained token of a micro-batch a number that the tokens of its row share.

    Args:
        batch: `labels` (B, T), and `position_ids` (B, T) where several rows lie on a line: they restart at each row.

    Returns:
        (N,) int64, in the order of `labels[:, 1:][labels[:, 1:] != -100]`.
    """
    import torch

    labels, positions = batch["labels"], batch.get("position_ids")
    lines = torch.arange(labels.shape[0], device=labels.device)[:, None] * labels.shape[1]  # (B, 1)
    rows = lines.expand_as(labels) if positions is None else lines + (positions == 0).cumsum(-1)
    return rows[:, 1:][labels[:, 1:] != -100]


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
        by: `probability`: w is the probability of the token; `entropy`: see `normalized_top_entropy`.

    Raises:
        HarnessError: `power` is `median` and `by` is not `probability`.
    """

    works_on_shards: ClassVar[bool] = True

    def __init__(self, power: float | Literal["median"], floor: float, by: Literal["probability", "entropy"]) -> None:
        if power == "median" and by != "probability":
            what = f"'power' is 'median', and 'by' is {by!r}"
            raise HarnessError("mitigations.reweight", what, "set 'by' to 'probability', or 'power' to a number")
        self.power, self.floor, self.by = power, floor, by
        self.weighs_tokens_in_parts = power != "median"  # the median is over whole rows

    def token_weights(
        self, logits: torch.Tensor, targets: torch.Tensor, batch: Mapping[str, torch.Tensor]
    ) -> torch.Tensor:
        """Return the weight of each token, (N,)."""
        from torch.nn import functional

        if self.by == "entropy":
            return normalized_top_entropy(logits).pow(float(self.power)).clamp(min=self.floor)
        nll = functional.cross_entropy(logits.float(), targets, reduction="none")
        if self.power != "median":
            return (-self.power * nll).exp().clamp(min=self.floor)
        if not len(targets):
            return nll
        temperature = median_of_rows(nll, rows_of_targets(batch)).clamp(min=MIN_TEMPERATURE)
        return (-nll / temperature).exp().clamp(min=self.floor)
