"""Mitigation `merged_lora`: one adapter of constant size, into which every stage is merged (SLAO, arXiv:2512.23017).

Stage i trains factors A and B. Its A begins as an orthonormal basis of the rows of the A that stage i - 1 trained:
Q^T of the QR decomposition of A^T. Its B begins at the B that stage i - 1 trained. After the stage the adapter of the
model is A_i = A and B_i = B_(i-1) + (B - B_(i-1)) / sqrt(i), so later stages change it less.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from harness import Component
from harness.errors import HarnessError
from harness.interfaces.mitigation import Mitigation
from harness.types import Stage, TokenizedExample
from harness_mitigations import adapter_common

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

COMPONENTS: dict[str, Component] = {
    "merged_lora": Component(
        summary="Trains one adapter and merges every stage into it, later ones less (SLAO, arXiv:2512.23017).",
        factory="harness_mitigations.merged_lora:MergedLora",
        options={
            **adapter_common.LORA_OPTIONS,
        },
        typical_ranges={"train.learning_rate": (5e-5, 1e-3), "train.epochs": (1, 5)},
    ),
}


def orthonormal_rows(a: Tensor) -> Tensor:
    """Return an orthonormal basis of the rows of A, whose signs make the factor R of A^T = Q R positive.

    Args:
        a: (r, k), with r <= k.

    Returns:
        (r, k), float32.
    """
    import torch

    q, r = torch.linalg.qr(a.float().T)
    rows: Tensor = (q * torch.where(r.diagonal() < 0, -1.0, 1.0)).T
    return rows.contiguous()


def merge_factor(merged: Tensor, trained: Tensor, number: int) -> Tensor:
    """Return the merged B after stage `number`, which counts from 1: merged + (trained - merged) / sqrt(number)."""
    return merged + (trained - merged) / math.sqrt(number)


class MergedLora(Mitigation):
    """Train one adapter; after each stage its B is a weighted mean of what the stages trained.

    Args:
        rank: rank of the adapter.
        alpha: the adapter's output is scaled by alpha / rank; None: twice the rank.
        dropout: fraction of an adapter's inputs set to zero in training.
        target: "all-linear", every linear layer but the output head, or the names of modules.
    """

    priority: ClassVar[int] = adapter_common.ADAPTER_PRIORITY
    adds_adapter: ClassVar[bool] = True

    def __init__(self, rank: int, alpha: float | None, dropout: float, target: str | Sequence[str]) -> None:
        self.rank, self.dropout = rank, dropout
        self.alpha = 2 * rank if alpha is None else alpha
        self.target = adapter_common.to_target_modules("merged_lora", target)
        self.trained_b: dict[str, Tensor] = {}  # layer -> (d, r), the B that the last stage trained
        self.merged_b: dict[str, Tensor] = {}  # layer -> (d, r), the B of the model after the last stage
        self.stages_ended = 0

    def check_compatible(self, others: Mapping[str, Mitigation]) -> None:
        """Reject a second adapter."""
        adapter_common.require_single_adapter("merged_lora", others)

    def prepare_model(self, model: PreTrainedModel, *, seed: int) -> PreTrainedModel:
        """Add the adapter; the model still computes the same.

        Raises:
            HarnessError: the model has an adapter, or `target` matches no module or one that is not a linear layer, or
                the rank is higher than a layer has inputs.
        """
        from harness.model import frozen_lora

        peft_model = adapter_common.add_linear_lora(
            "merged_lora", model, rank=self.rank, alpha=self.alpha, dropout=self.dropout, target=self.target, seed=seed
        )
        for name, layer in frozen_lora.lora_layers(peft_model).items():
            if self.rank > layer.in_features:
                what = f"rank {self.rank} is higher than the {layer.in_features} inputs of {name}"
                raise HarnessError("mitigations.merged_lora.rank", what, f"lower it to {layer.in_features} or less")
        return peft_model

    def on_stage_start(
        self, stage: Stage, model: PreTrainedModel, rows: Mapping[str, Sequence[TokenizedExample]], *, seed: int
    ) -> None:
        """From the second stage on, begin at the orthonormal A and at the B that the last stage trained."""
        if not self.stages_ended:
            return
        import torch

        from harness.model import frozen_lora

        with torch.no_grad():
            for name, layer in frozen_lora.lora_layers(model).items():
                a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
                a.copy_(orthonormal_rows(a))
                b.copy_(self.trained_b[name])

    def on_stage_end(self, stage: Stage, model: PreTrainedModel, rows: Sequence[TokenizedExample]) -> None:
        """Merge what the stage trained into the adapter."""
        import torch

        from harness.model import frozen_lora

        self.stages_ended += 1
        with torch.no_grad():
            for name, layer in frozen_lora.lora_layers(model).items():
                b = layer.lora_B["default"].weight
                trained = b.detach().to("cpu", copy=True)
                merged = merge_factor(self.merged_b.get(name, torch.zeros_like(trained)), trained, self.stages_ended)
                self.trained_b[name], self.merged_b[name] = trained, merged
                b.copy_(merged)

    def state_dict(self) -> dict[str, Any]:
        """Return the B that the last stage trained, the merged B, and the number of stages that ended."""
        return {"trained": self.trained_b, "merged": self.merged_b, "stages": self.stages_ended}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the state."""
        self.trained_b, self.merged_b = dict(state["trained"]), dict(state["merged"])
        self.stages_ended = int(state["stages"])
