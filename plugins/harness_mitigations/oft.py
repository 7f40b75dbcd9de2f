"""Mitigation `oft`: only a block-wise rotation of each layer's inputs is learned (arXiv:2306.07280, peft's `oft`).

W becomes W R with R block-diagonal and orthogonal: the angles between the neurons of a layer do not change.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar

from harness import Component
from harness.errors import HarnessError
from harness.interfaces.mitigation import Mitigation
from harness_mitigations import adapter_common

if TYPE_CHECKING:
    from transformers import PreTrainedModel

COMPONENTS: dict[str, Component] = {
    "oft": Component(
        summary="Trains a rotation of each layer's inputs, block by block (OFT, arXiv:2306.07280).",
        factory="harness_mitigations.oft:Oft",
        options={
            "block": {
                "type": "integer",
                "minimum": 2,
                "default": 32,
                "description": "Size of the blocks; must divide the width of every adapted layer's input.",
            },
            "exact": {
                "type": "boolean",
                "default": False,
                "description": "Rotate exactly, by a matrix inverse, instead of by five terms of its series.",
            },
            "dropout": {
                "type": "number",
                "minimum": 0,
                "exclusiveMaximum": 1,
                "default": 0.0,
                "description": "Share of the blocks that do not rotate in a training step.",
            },
            "target": adapter_common.TARGET_OPTION,
        },
        typical_ranges={"train.learning_rate": (5e-5, 2e-3)},
    ),
}


class Oft(Mitigation):
    """Train a rotation of each layer's inputs.

    Args:
        block: size of the blocks; must divide the number of inputs.
        exact: rotate by the exact Cayley transform instead of five terms of its series.
        dropout: share of the blocks that do not rotate in a training step.
        target: "all-linear", every linear layer but the output head, or the names of modules.
    """

    priority: ClassVar[int] = adapter_common.ADAPTER_PRIORITY
    adds_adapter: ClassVar[bool] = True

    def __init__(self, block: int, exact: bool, dropout: float, target: str | Sequence[str]) -> None:
        self.block, self.exact, self.dropout = block, exact, dropout
        self.target = adapter_common.to_target_modules("oft", target)

    def check_compatible(self, others: Mapping[str, Mitigation]) -> None:
        """Reject a second adapter."""
        adapter_common.require_single_adapter("oft", others)

    def prepare_model(self, model: PreTrainedModel, *, seed: int) -> PreTrainedModel:
        """Add the adapter; the model still computes the same.

        Raises:
            HarnessError: the model has an adapter, no module matches `target`, or the blocks do not divide a width.
        """
        from peft import OFTConfig
        from torch import nn

        from harness_mitigations import linear_layers

        linear_layers.reject_conv1d("oft", model, self.target)
        targets = None if self.target == "all-linear" else self.target
        head = model.get_output_embeddings()
        for name, module in model.named_modules():
            adapted = targets is None or linear_layers.is_target(name, targets)
            # peft would take the nearest size that fits, with a warning
            if isinstance(module, nn.Linear) and module is not head and adapted and module.in_features % self.block:
                raise HarnessError(
                    "mitigations.oft.block",
                    f"blocks of {self.block} do not divide the {module.in_features} inputs of {name}",
                    "choose a divisor of the layers' widths, e.g. 8, 16 or 32",
                )
        config = OFTConfig(
            task_type="CAUSAL_LM",
            oft_block_size=self.block,
            target_modules=self.target,
            use_cayley_neumann=not self.exact,
            module_dropout=self.dropout,
        )
        return adapter_common.add_adapter("oft", model, config, seed=seed)
