"""O-LoRA: every stage learns an adapter of its own, in directions orthogonal to the earlier ones' (arXiv:2310.14152).

A stage's change of a weight is s B A; it acts on the inputs' components along the rows of A. Earlier stages' changes
stay, frozen; the rows of the new A are pushed away from theirs by lambda * sum over layers of the sum of |A_i A^T|.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from harness import seeding
from harness.interfaces.mitigation import Mitigation
from harness.types import Row, Stage
from harness_mitigations import adapter_common

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from transformers import PreTrainedModel


def overlap(a: Tensor, earlier: Tensor) -> Tensor:
    """Sum of the absolute inner products of the rows of A, of shape (r, k), with those of earlier ones, (R, k)."""
    return (earlier @ a.T).abs().sum()


def pull(a: Tensor, gradient: Tensor, earlier: Tensor, strength: float) -> Tensor:
    """Add strength * the gradient of `overlap` by A to `gradient`, in place; return strength * overlap. No graph.

    Where an inner product is 0 its subgradient is 0, so nothing pulls on orthogonal rows.
    """
    import torch

    with torch.no_grad():
        products = earlier @ a.T  # (R, r)
        gradient.addmm_(products.sign().T, earlier, alpha=strength)
        return strength * products.abs().sum()


class OrthogonalLora(Mitigation):
    """A new adapter a stage; what the stages before learned stays in the model, frozen, beside it.

    rank, alpha, dropout, target: as in `lora`, of each stage's adapter. strength: lambda. Added to the gradient once
    an update after clipping, the penalty does not depend on accumulation.
    """

    order: ClassVar[int] = adapter_common.ORDER
    adapts: ClassVar[bool] = True

    def __init__(
        self, rank: int, alpha: float | None, dropout: float, target: str | Sequence[str], strength: float
    ) -> None:
        self.rank, self.dropout, self.strength = rank, dropout, strength
        self.alpha = 2 * rank if alpha is None else alpha
        self.target = adapter_common.targets(target)
        self.earlier: dict[str, Tensor] = {}  # layer -> the A of earlier stages, one below the other
        self.stages = 0

    def check(self, others: Mapping[str, Mitigation]) -> None:
        """Refuse a second adapter."""
        adapter_common.alone("orthogonal_lora", others)

    def model(self, model: PreTrainedModel) -> PreTrainedModel:
        """The model within the first stage's adapter, still the base model."""
        from peft import LoraConfig

        config = LoraConfig(
            task_type="CAUSAL_LM",
            r=self.rank,
            lora_alpha=self.alpha,  # type: ignore[arg-type]
            lora_dropout=self.dropout,
            target_modules=self.target,
        )
        return adapter_common.adapt("orthogonal_lora", model, config)

    def begin_stage(self, stage: Stage, model: PreTrainedModel, rows: Mapping[str, Sequence[Row]]) -> None:
        """Freeze what the last stage learned and begin a new adapter, at no change."""
        self.stages += 1
        if self.stages == 1:
            return
        import torch

        from harness.model import frozen_lora

        layers = frozen_lora.adapted_layers(model)
        learned = {
            name: (layer.lora_A["default"].weight, layer.scaling["default"] * layer.lora_B["default"].weight)
            for name, layer in layers.items()
        }
        frozen_lora.keep(model, learned)
        with torch.no_grad(), torch.random.fork_rng():
            torch.manual_seed(seeding.derive(torch.initial_seed(), "orthogonal_lora", self.stages))
            for name, layer in layers.items():
                a = layer.lora_A["default"].weight.detach().clone()
                before = self.earlier.get(name)
                self.earlier[name] = a if before is None else torch.cat([before.to(a.device), a])
                layer.reset_lora_parameters("default", True)

    def weight_pull(self, model: PreTrainedModel) -> torch.Tensor | None:
        """Push the new A of each layer towards what the earlier ones left free."""
        if not self.earlier or self.strength == 0:
            return None
        from harness.model import frozen_lora

        values = []
        for name, layer in frozen_lora.adapted_layers(model).items():
            weight = layer.lora_A["default"].weight
            if weight.grad is not None:
                self.earlier[name] = self.earlier[name].to(weight.device)
                values.append(pull(weight, weight.grad, self.earlier[name], self.strength))
        return sum(values[1:], values[0]) if values else None

    def state_dict(self) -> dict[str, Any]:
        """The A of earlier stages by layer, and the number of stages begun; what they learned is the model's."""
        return {"earlier": self.earlier, "stages": self.stages}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what `state_dict` gave."""
        self.earlier, self.stages = dict(state["earlier"]), int(state["stages"])
