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
from harness.types import Stage, TokenizedExample

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from transformers import PreTrainedModel

BATCH_SIZE = 8
"""Rows of one forward pass when a quantile is measured."""


def mask_high_perplexity(labels: Tensor, nll: Tensor, max_nll: float) -> Tensor:
    """The labels without the targets whose negative log-likelihood is above a limit.

    labels: (B, T), -100 where not trained. nll: (N,), in nats, of the trained tokens in the order of the rows, the
    first token of a row excepted. max_nll: in nats; a perplexity's logarithm. Returns (B, T).
    """
    made = labels.clone()
    targets = made[:, 1:]
    places = targets != -100
    targets[places] = targets[places].masked_fill((nll > max_nll).to(labels.device), -100)
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
        self.max_nll = math.log(threshold)
        self.threshold_is_known = quantile is None

    def check_compatible(self, others: Mapping[str, Mitigation]) -> None:
        """Refuse a quantile of nothing."""
        if self.quantile is not None and self.source is None:
            raise HarnessError(
                "mitigations.token_masking.source",
                "a quantile is given, and no source says of what",
                "name the source whose rows it is measured on, or give a threshold alone",
            )

    def on_stage_start(
        self, stage: Stage, model: PreTrainedModel, rows: Mapping[str, Sequence[TokenizedExample]]
    ) -> None:
        """Remember the base model before the first stage, and measure the threshold if it is a quantile."""
        from harness_mitigations import base_model

        if self.under == "base":
            base_model.snapshot_base(model)
        if self.threshold_is_known:
            return
        given = rows.get(self.source or "", ())
        if not given:
            raise HarnessError(
                "mitigations.token_masking.source",
                f"'{self.source}' has no row to measure the quantile on",
                "name a source that has rows to train on",
            )
        self.max_nll, self.threshold_is_known = self._measure_threshold(model, given), True

    def _measure_threshold(self, model: PreTrainedModel, rows: Sequence[TokenizedExample]) -> float:
        import torch

        from harness_mitigations import base_model

        draw = seeding.create_generator(torch.initial_seed(), "token_masking")
        chosen = [rows[index] for index in draw.sample(range(len(rows)), min(self.samples, len(rows)))]
        found = []
        for start in range(0, len(chosen), BATCH_SIZE):
            found.append(
                self._token_nll(model, base_model.collate_rows(model, chosen[start : start + BATCH_SIZE])).cpu()
            )
        ordered = torch.cat(found).sort().values
        return float(ordered[max(0, math.ceil(float(self.quantile or 0) * len(ordered)) - 1)])

    def filter_labels(self, model: PreTrainedModel, batch: Mapping[str, torch.Tensor]) -> torch.Tensor | None:
        """The batch's labels without the surprising ones."""
        return mask_high_perplexity(batch["labels"], self._token_nll(model, batch), self.max_nll)

    def _token_nll(self, model: PreTrainedModel, batch: Mapping[str, Tensor]) -> Tensor:
        import torch
        from torch.nn import functional

        from harness.training.loss import target_logits, target_tokens
        from harness_mitigations import base_model

        context = base_model.frozen_base_model if self.under == "base" else base_model.eval_mode
        with torch.no_grad(), context(model) as judge:
            logits = target_logits(judge, batch)  # (N, V)
        return functional.cross_entropy(
            logits.float(), target_tokens(batch["labels"]).to(logits.device), reduction="none"
        )

    def state_dict(self) -> dict[str, Any]:
        """The threshold in nats, and whether it is measured."""
        return {"limit": self.max_nll, "measured": int(self.threshold_is_known)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what `state_dict` gave."""
        self.max_nll, self.threshold_is_known = float(state["limit"]), bool(state["measured"])
