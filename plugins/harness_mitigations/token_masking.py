"""Mitigation `token_masking`: targets of high perplexity are excluded from the loss (STM, arXiv:2501.14315).

Tokens of high perplexity under the original model change its weights most. Without them the model learns the task
nearly as well and forgets less. The rest of the row remains as context.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from harness import Component, seeding
from harness.errors import HarnessError
from harness.interfaces.mitigation import Mitigation
from harness.types import Stage, TokenizedExample

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from transformers import PreTrainedModel

COMPONENTS: dict[str, Component] = {
    "token_masking": Component(
        summary="Excludes targets of high perplexity from the loss (STM, arXiv:2501.14315).",
        factory="harness_mitigations.token_masking:TokenMasking",
        options={
            "threshold": {
                "type": "number",
                "exclusiveMinimum": 1,
                "default": 2.5,
                "description": "Perplexity above which a token is not trained.",
            },
            "quantile": {
                "type": ["number", "null"],
                "exclusiveMinimum": 0,
                "maximum": 1,
                "default": None,
                "description": "Instead of the threshold: the share of the tokens of `source` to keep, e.g. 0.8.",
            },
            "source": {
                "type": ["string", "null"],
                "format": "source",
                "default": None,
                "description": "For the quantile: the source on whose rows it is measured.",
            },
            "samples": {
                "type": "integer",
                "minimum": 1,
                "default": 64,
                "description": "For the quantile: number of rows that it is measured on, chosen by the seed.",
            },
            "under": {
                "enum": ["base", "current"],
                "default": "base",
                "description": "The model that measures the perplexity: the one before training, or the current one.",
            },
        },
    ),
}

BATCH_SIZE = 8
"""Rows of one forward pass when a quantile is measured."""


def mask_high_perplexity(labels: Tensor, nll: Tensor, max_nll: float) -> Tensor:
    """Return the labels without the targets whose negative log-likelihood is above a limit.

    Args:
        labels: (B, T), -100 where not trained.
        nll: (N,), in nats, of the trained tokens in the order of `labels[:, 1:][labels[:, 1:] != -100]`.
        max_nll: in nats; the logarithm of a perplexity.

    Returns:
        (B, T).
    """
    masked = labels.clone()
    targets = masked[:, 1:]  # a view
    is_target = targets != -100
    targets[is_target] = targets[is_target].masked_fill((nll > max_nll).to(labels.device), -100)
    return masked


class TokenMasking(Mitigation):
    """Train no token whose perplexity is above a threshold.

    Args:
        threshold: the perplexity.
        quantile: replaces the threshold: the fraction of a sample's trained tokens that is kept. The threshold is the
            perplexity at this quantile, measured before the first stage.
        source: for the quantile, the source of the sample.
        samples: for the quantile, maximum number of its rows.
        under: the model that measures the perplexity: `base`, the model before training, or `current`, the model at
            each step.
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
        self.base_copy: PreTrainedModel | None = None  # read for the memory of the report

    def check_compatible(self, others: Mapping[str, Mitigation]) -> None:
        """Require a source for a quantile."""
        if self.quantile is not None and self.source is None:
            raise HarnessError(
                "mitigations.token_masking.source",
                "a quantile is given, but no source to measure it on",
                "name a source, or set mitigations.token_masking.quantile to null",
            )

    def on_stage_start(
        self, stage: Stage, model: PreTrainedModel, rows: Mapping[str, Sequence[TokenizedExample]], *, seed: int
    ) -> None:
        """Copy the base model before the first stage, and measure the threshold if it is a quantile.

        Raises:
            HarnessError: `source` has no row.
        """
        from harness_mitigations import base_model

        if self.under == "base":
            self.base_copy = base_model.snapshot_base(model)
        if self.threshold_is_known:
            return
        source_rows = rows.get(self.source or "", ())
        if not source_rows:
            raise HarnessError(
                "mitigations.token_masking.source",
                f"'{self.source}' has no row to measure the quantile on",
                "name a source that has rows to train on",
            )
        self.max_nll, self.threshold_is_known = self._measure_threshold(model, source_rows, seed), True

    def filter_labels(self, model: PreTrainedModel, batch: Mapping[str, torch.Tensor]) -> torch.Tensor | None:
        """Return the batch's labels without the targets of high perplexity."""
        return mask_high_perplexity(batch["labels"], self._token_nll(model, batch), self.max_nll)

    def state_dict(self) -> dict[str, Any]:
        """Return the threshold in nats, and whether it is measured."""
        return {"limit": self.max_nll, "measured": int(self.threshold_is_known)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the state."""
        self.max_nll, self.threshold_is_known = float(state["limit"]), bool(state["measured"])

    def _measure_threshold(self, model: PreTrainedModel, rows: Sequence[TokenizedExample], seed: int) -> float:
        """Return the negative log-likelihood at the quantile, in nats."""
        import torch

        from harness_mitigations import base_model

        generator = seeding.create_generator(seed, "token_masking")
        sample = [rows[index] for index in generator.sample(range(len(rows)), min(self.samples, len(rows)))]
        batches = (sample[start : start + BATCH_SIZE] for start in range(0, len(sample), BATCH_SIZE))
        nll = torch.cat([self._token_nll(model, base_model.collate_rows(model, batch)).cpu() for batch in batches])
        index = math.ceil(float(self.quantile or 0) * len(nll)) - 1
        return float(nll.sort().values[max(0, index)])

    def _token_nll(self, model: PreTrainedModel, batch: Mapping[str, Tensor]) -> Tensor:
        """Return the negative log-likelihood of the N trained tokens of a batch, in nats: (N,)."""
        import torch
        from torch.nn import functional

        from harness.training.loss import target_logits, target_tokens
        from harness_mitigations import base_model

        context = base_model.frozen_base_model if self.under == "base" else base_model.eval_mode
        with torch.no_grad(), context(model) as measuring_model:
            logits = target_logits(measuring_model, batch)  # (N, V)
        targets = target_tokens(batch["labels"]).to(logits.device)  # (N,)
        return functional.cross_entropy(logits.float(), targets, reduction="none")
