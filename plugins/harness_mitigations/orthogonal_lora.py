"""O-LoRA: every stage learns an adapter of its own, in directions orthogonal to the earlier ones' (arXiv:2310.14152).

A stage's change of a weight is s B A; it acts on the inputs' components along the rows of A. Earlier stages' changes
stay, frozen; the rows of the new A are pushed away from theirs by lambda * sum over layers of the sum of |A_i A^T|.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from harness import seeding
from harness.interfaces.mitigation import Mitigation
from harness.types import Stage, TokenizedExample
from harness_mitigations import adapter_common

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from transformers import PreTrainedModel


def subspace_overlap(a: Tensor, previous: Tensor) -> Tensor:
    """Sum of the absolute inner products of the rows of A, of shape (r, k), with those of earlier ones, (R, k)."""
    return (previous @ a.T).abs().sum()


def add_overlap_gradient(a: Tensor, gradient: Tensor, previous: Tensor, strength: float) -> Tensor:
    """Add strength * the gradient of `subspace_overlap` by A to `gradient`, in place; return strength * it. No graph.

    Where an inner product is 0 its subgradient is 0, so nothing pulls on orthogonal rows.
    """
    import torch

    with torch.no_grad():
        products = previous @ a.T  # (R, r)
        gradient.addmm_(products.sign().T, previous, alpha=strength)
        return strength * products.abs().sum()


class OrthogonalLora(Mitigation):
    """A new adapter a stage; what the stages before learned stays in the model, frozen, beside it.

    rank, alpha, dropout, target: as in `lora`, of each stage's adapter. strength: lambda. Added to the gradient once
    an update after clipping, the penalty does not depend on accumulation.
    """

    priority: ClassVar[int] = adapter_common.ADAPTER_PRIORITY
    adds_adapter: ClassVar[bool] = True

    def __init__(
        self, rank: int, alpha: float | None, dropout: float, target: str | Sequence[str], strength: float
    ) -> None:
        self.rank, self.dropout, self.strength = rank, dropout, strength
        self.alpha = 2 * rank if alpha is None else alpha
        self.target = adapter_common.to_target_modules(target)
        self.previous_a: dict[str, Tensor] = {}  # layer -> the A of earlier stages, one below the other
        self.stages_started = 0

    def check_compatible(self, others: Mapping[str, Mitigation]) -> None:
        """Refuse a second adapter."""
        adapter_common.require_single_adapter("orthogonal_lora", others)

    def prepare_model(self, model: PreTrainedModel) -> PreTrainedModel:
        """The model within the first stage's adapter, still the base model."""
        from peft import LoraConfig

        config = LoraConfig(
            task_type="CAUSAL_LM",
            r=self.rank,
            lora_alpha=self.alpha,  # type: ignore[arg-type]
            lora_dropout=self.dropout,
            target_modules=self.target,
        )
        return adapter_common.add_adapter("orthogonal_lora", model, config)

    def on_stage_start(
        self, stage: Stage, model: PreTrainedModel, rows: Mapping[str, Sequence[TokenizedExample]]
    ) -> None:
        """Freeze what the last stage learned and begin a new adapter, at no change."""
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
            torch.manual_seed(seeding.derive_seed(torch.initial_seed(), "orthogonal_lora", self.stages_started))
            for name, layer in layers.items():
                a = layer.lora_A["default"].weight.detach().clone()
                before = self.previous_a.get(name)
                self.previous_a[name] = a if before is None else torch.cat([before.to(a.device), a])
                layer.reset_lora_parameters("default", True)

    def add_weight_penalty(self, model: PreTrainedModel) -> torch.Tensor | None:
        """Push the new A of each layer towards what the earlier ones left free."""
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
        """The A of earlier stages by layer, and the number of stages begun; what they learned is the model's."""
        return {"earlier": self.previous_a, "stages": self.stages_started}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what `state_dict` gave."""
        self.previous_a, self.stages_started = dict(state["earlier"]), int(state["stages"])
