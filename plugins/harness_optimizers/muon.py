"""Optimizer `muon`: orthogonalized momentum for matrices (Jordan et al., 2024; Liu et al., 2025, arXiv:2502.16982)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from harness import Component, Optimizer
from harness_optimizers.adamw import ADAM_OPTIONS

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

COMPONENTS: dict[str, Component] = {
    "muon": Component(
        summary="Muon for matrices; AdamW for embeddings, output head, norms and biases.",
        factory="harness_optimizers.muon:Muon",
        options={
            "momentum": {
                "type": "number",
                "minimum": 0,
                "exclusiveMaximum": 1,
                "default": 0.95,
                "description": "Fraction of the last momentum that the next one keeps, for matrices.",
            },
            "nesterov": {
                "type": "boolean",
                "default": True,
                "description": "Add the gradient to the momentum once more before it is orthogonalized.",
            },
            "adjust": {
                "enum": ["match_rms_adamw", "original"],
                "default": "match_rms_adamw",
                "description": "Factor of a matrix's update. match_rms_adamw: its root mean square is that of AdamW, "
                "so one learning rate suits both. original: sqrt(max(1, rows / columns)).",
            },
            **{
                key: {**option, "description": f"Of AdamW. {option['description']}"}
                for key, option in ADAM_OPTIONS.items()
            },
        },
    ),
}

MATRIX_KEY = "orthogonalize"
"""Key of a group whose weights Muon trains."""


class Muon(Optimizer):
    """Muon and AdamW. Their states take 4 and 8 bytes a weight."""

    bytes_per_weight: ClassVar[float] = 4.0

    def __init__(self, momentum: float, nesterov: bool, adjust: str, betas: Sequence[float], eps: float) -> None:
        self.momentum, self.nesterov, self.adjust = momentum, nesterov, adjust
        self.betas, self.eps = (float(betas[0]), float(betas[1])), eps

    def param_groups(self, model: PreTrainedModel) -> Sequence[Mapping[str, Any]]:
        """Return the matrices of the layers as weights that Muon trains."""
        tables = (model.get_input_embeddings(), model.get_output_embeddings())
        others = {id(weight) for module in tables if module is not None for weight in module.parameters()}
        matrices = [w for w in model.parameters() if w.requires_grad and w.ndim == 2 and id(w) not in others]
        return ({"params": matrices, MATRIX_KEY: True},)

    def build(self, param_groups: Sequence[dict[str, Any]], settings: Mapping[str, Any]) -> torch.optim.Optimizer:
        """Return one optimizer for both kinds of groups."""
        from harness_optimizers.muon_step import MuonAndAdamW

        muon = {"momentum": self.momentum, "nesterov": self.nesterov, "adjust_lr_fn": self.adjust}
        adamw = {"betas": self.betas, "eps": self.eps}
        return MuonAndAdamW(param_groups, settings["learning_rate"], MATRIX_KEY, muon, adamw)
