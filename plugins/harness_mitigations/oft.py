"""OFT: the inputs of each layer are rotated in blocks, and nothing else is learned (arXiv:2306.07280, peft's `oft`).

W becomes W R with R block-diagonal and orthogonal: angles between the neurons of a layer stay what they were.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar

from harness.errors import HarnessError
from harness.interfaces.mitigation import Mitigation
from harness_mitigations import adapter_common

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Oft(Mitigation):
    """Train a rotation of each layer's inputs. block: its size; must divide their number. target: as in `lora`.

    exact: rotate by the exact Cayley transform instead of five terms of its series. dropout: share of the blocks that
    do not rotate in a training step.
    """

    priority: ClassVar[int] = adapter_common.ADAPTER_PRIORITY
    adds_adapter: ClassVar[bool] = True

    def __init__(self, block: int, exact: bool, dropout: float, target: str | Sequence[str]) -> None:
        self.block, self.exact, self.dropout, self.target = (
            block,
            exact,
            dropout,
            adapter_common.to_target_modules(target),
        )

    def check_compatible(self, others: Mapping[str, Mitigation]) -> None:
        """Refuse a second adapter."""
        adapter_common.require_single_adapter("oft", others)

    def prepare_model(self, model: PreTrainedModel) -> PreTrainedModel:
        """The model within its adapter. Raises HarnessError when it has one already, or the blocks do not fit."""
        from peft import OFTConfig
        from torch import nn

        named = None if self.target == "all-linear" else self.target
        head = model.get_output_embeddings()
        for name, part in model.named_modules():
            adapted = named is None or any(name == one or name.endswith(f".{one}") for one in named)
            # peft would take the nearest size that fits, and say so in a warning
            if isinstance(part, nn.Linear) and part is not head and adapted and part.in_features % self.block:
                raise HarnessError(
                    "mitigations.oft.block",
                    f"blocks of {self.block} do not divide the {part.in_features} inputs of {name}",
                    "choose a divisor of the layers' widths, e.g. 8, 16 or 32",
                )
        config = OFTConfig(
            task_type="CAUSAL_LM",
            oft_block_size=self.block,
            target_modules=self.target,
            use_cayley_neumann=not self.exact,
            module_dropout=self.dropout,
        )
        return adapter_common.add_adapter("oft", model, config)
