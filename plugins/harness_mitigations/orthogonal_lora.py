"""Mitigation `orthogonal_lora`: an adapter for each stage, orthogonal to the earlier ones (O-LoRA, arXiv:2310.14152).

A stage's change of a weight is s B A; it acts on the inputs' components along the rows of A. The changes of earlier
stages stay in the model, frozen. The overlap of the new A with theirs is penalized by lambda * sum over layers of the
sum of |A_i A^T|.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from harness import Component, seeding
from harness.interfaces.mitigation import Mitigation
from harness.types import Stage, TokenizedExample
from harness_mitigations import adapter_common

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from transformers import PreTrainedModel

COMPONENTS: dict[str, Component] = {
    "orthogonal_lora": Component(
        summary="Trains an adapter for each stage, orthogonal to the earlier ones (O-LoRA, arXiv:2310.14152).",
        factory="harness_mitigations.orthogonal_lora:OrthogonalLora",
        options={
            **adapter_common.LORA_OPTIONS,
            "strength": {
                "type": "number",
                "minimum": 0,
                "default": 0.5,
                "description": "Factor of the summed overlap with earlier stages' directions; the paper's is 0.5.",
            },
        },
        typical_ranges={"train.learning_rate": (5e-5, 1e-3), "train.epochs": (1, 5)},
    ),
}


def add_overlap_gradient(a: Tensor, gradient: Tensor, previous: Tensor, strength: float) -> Tensor:
    """Add strength * the gradient of the overlap by A to `gradient`, in place.

    The overlap is the sum of the absolute inner products of the rows of A with those of earlier ones.

    Where an inner product is 0 its subgradient is 0, so orthogonal rows get no penalty gradient.

    Args:
        a: (r, k).
        gradient: (r, k), changed in place.
        previous: (R, k), the rows of all earlier A.
        strength: lambda.

    Returns:
        strength * the overlap, without a graph.
    """
    import torch

    with torch.no_grad():
        products = previous @ a.T  # (R, r)
        gradient.addmm_(products.sign().T, previous, alpha=strength)
        return strength * products.abs().sum()


class OrthogonalLora(Mitigation):
    """Add a new adapter for each stage; the changes of earlier stages stay in the model, frozen.

    The penalty's gradient is added once a step after clipping, so it does not depend on accumulation.

    Args:
        rank: rank of each stage's adapter.
        alpha: the adapter's output is scaled by alpha / rank; None: twice the rank.
        dropout: fraction of an adapter's inputs set to zero in training.
        target: "all-linear", every linear layer but the output head, or the names of modules.
        strength: lambda.
    """

    priority: ClassVar[int] = adapter_common.ADAPTER_PRIORITY
    adds_adapter: ClassVar[bool] = True

    def __init__(
        self, rank: int, alpha: float | None, dropout: float, target: str | Sequence[str], strength: float
    ) -> None:
        self.rank, self.dropout, self.strength = rank, dropout, strength
        self.alpha = 2 * rank if alpha is None else alpha
        self.target = adapter_common.to_target_modules("orthogonal_lora", target)
        self.previous_a: dict[str, Tensor] = {}  # layer -> (R, k), the rows of all earlier A
        self.stages_started = 0

    def check_compatible(self, others: Mapping[str, Mitigation]) -> None:
        """Reject a second adapter."""
        adapter_common.require_single_adapter("orthogonal_lora", others)

    def prepare_model(self, model: PreTrainedModel, *, seed: int) -> PreTrainedModel:
        """Add the first stage's adapter; the model still computes the same.

        Raises:
            HarnessError: the model has an adapter, or `target` matches no module or one that is not a linear layer.
        """
        return adapter_common.add_linear_lora(
            "orthogonal_lora",
            model,
            rank=self.rank,
            alpha=self.alpha,
            dropout=self.dropout,
            target=self.target,
            seed=seed,
        )

    def on_stage_start(
        self, stage: Stage, model: PreTrainedModel, rows: Mapping[str, Sequence[TokenizedExample]], *, seed: int
    ) -> None:
        """Freeze the change of the previous stage and reset the adapter to no change."""
        self.stages_started += 1
        if self.stages_started == 1:
            return
        import torch

        from harness.model import frozen_lora

        layers = frozen_lora.lora_layers(model)
        learned = {
            name: (layer.lora_A["default"].weight, layer.scaling["default"] * layer.lora_B["default"].weight)
            for name, layer in layers.items()
        }
        frozen_lora.add_frozen_lora(model, learned)
        with torch.no_grad(), torch.random.fork_rng():
            torch.manual_seed(seeding.derive_seed(seed, "orthogonal_lora", self.stages_started))
            for name, layer in layers.items():
                a = layer.lora_A["default"].weight.detach().clone()
                previous = self.previous_a.get(name)
                self.previous_a[name] = a if previous is None else torch.cat([previous.to(a.device), a])
                layer.reset_lora_parameters("default", True)

    def add_weight_penalty(self, model: PreTrainedModel) -> torch.Tensor | None:
        """Penalize the overlap of each layer's new A with the earlier ones."""
        if not self.previous_a or self.strength == 0:
            return None
        from harness.model import frozen_lora

        values = []
        for name, layer in frozen_lora.lora_layers(model).items():
            weight = layer.lora_A["default"].weight
            if weight.grad is not None:
                self.previous_a[name] = self.previous_a[name].to(weight.device)
                values.append(add_overlap_gradient(weight, weight.grad, self.previous_a[name], self.strength))
        return sum(values[1:], values[0]) if values else None

    def state_dict(self) -> dict[str, Any]:
        """Return the A of earlier stages by layer, and the number of stages started; the model stores their changes."""
        return {"earlier": self.previous_a, "stages": self.stages_started}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the state."""
        self.previous_a, self.stages_started = dict(state["earlier"]), int(state["stages"])
