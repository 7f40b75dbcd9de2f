"""Selective token masking: targets that surprise the model are left out of the loss (STM, arXiv:2501.14315).

Tokens of a high perplexity under the model as it was are those that move it farthest; without them it learns the task
nearly as well and forgets less. The rest of the row stays as the context of what is trained.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from harness import seeding
from harness.errors import HarnessError
from harness.interfaces.mitigation import Mitigation
from harness.types import Row, Stage

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from transformers import PreTrainedModel

BATCH = 8
"""Rows of one forward pass when a quantile is measured."""


def without_surprises(labels: Tensor, nll: Tensor, limit: float) -> Tensor:
    """The labels without the targets whose negative log-likelihood is above a limit.

    labels: (B, T), -100 where not trained. nll: (N,), in nats, of the trained tokens in the order of the rows, the
    first token of a row excepted. limit: in nats; a perplexity's logarithm. Returns (B, T).
    """
    made = labels.clone()
    targets = made[:, 1:]
    places = targets != -100
    targets[places] = targets[places].masked_fill((nll > limit).to(labels.device), -100)
    return made


class TokenMasking(Mitigation):
    """Train no token whose perplexity is above a threshold.

    threshold: perplexity. quantile: instead, the share of a sample's trained tokens that is kept: the threshold is what
    the base model's perplexity is at it, measured before the first stage on at most `samples` rows of `source`.
    under: the model that is surprised: `base`, as before training, or `current`, as it is at each update.
    """

    def __init__(
        self,
        threshold: float,
        quantile: float | None,
        source: str | None,
        samples: int,
        under: Literal["base", "current"],
    ) -> None:
        self.quantile, self.source, self.samples, self.under = quantile, source, samples, under
        self.limit = math.log(threshold)
        self.measured = quantile is None

    def check(self, others: Mapping[str, Mitigation]) -> None:
        """Refuse a quantile of nothing."""
        if self.quantile is not None and self.source is None:
            raise HarnessError(
                "mitigations.token_masking.source",
                "a quantile is given, and no source says of what",
                "name the source whose rows it is measured on, or give a threshold alone",
            )

    def begin_stage(self, stage: Stage, model: PreTrainedModel, rows: Mapping[str, Sequence[Row]]) -> None:
        """Remember the base model before the first stage, and measure the threshold if it is a quantile."""
        from harness_mitigations import base_model

        if self.under == "base":
            base_model.remember(model)
        if self.measured:
            return
        given = rows.get(self.source or "", ())
        if not given:
            raise HarnessError(
                "mitigations.token_masking.source",
                f"'{self.source}' has no row to measure the quantile on",
                "name a source that has rows to train on",
            )
        self.limit, self.measured = self._quantile(model, given), True

    def _quantile(self, model: PreTrainedModel, given: Sequence[Row]) -> float:
        import torch

        from harness_mitigations import base_model

        draw = seeding.generator(torch.initial_seed(), "token_masking")
        chosen = [given[index] for index in draw.sample(range(len(given)), min(self.samples, len(given)))]
        found = []
        for start in range(0, len(chosen), BATCH):
            found.append(self._nll(model, base_model.batched(model, chosen[start : start + BATCH])).cpu())
        ordered = torch.cat(found).sort().values
        return float(ordered[max(0, math.ceil(float(self.quantile or 0) * len(ordered)) - 1)])

    def labels(self, model: PreTrainedModel, batch: Mapping[str, torch.Tensor]) -> torch.Tensor | None:
        """The batch's labels without the surprising ones."""
        return without_surprises(batch["labels"], self._nll(model, batch), self.limit)

    def _nll(self, model: PreTrainedModel, batch: Mapping[str, Tensor]) -> Tensor:
        import torch
        from torch.nn import functional

        from harness.training.loss import targets, trained_logits
        from harness_mitigations import base_model

        context = base_model.base if self.under == "base" else base_model.resting
        with torch.no_grad(), context(model) as judge:
            logits = trained_logits(judge, batch)  # (N, V)
        return functional.cross_entropy(logits.float(), targets(batch["labels"]).to(logits.device), reduction="none")

    def state_dict(self) -> dict[str, Any]:
        """The threshold in nats, and whether it is measured."""
        return {"limit": self.limit, "measured": int(self.measured)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what `state_dict` gave."""
        self.limit, self.measured = float(state["limit"]), bool(state["measured"])
