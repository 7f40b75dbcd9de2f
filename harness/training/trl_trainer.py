"""The engine on TRL's SFTTrainer.

Knows what must be switched off there (its rendering, packing, model card, telemetry) and what is worth keeping: the
fused head, which never builds the logits, on devices with Triton. Elsewhere that head is applied to every position,
prompts and padding too, and computed anew in the backward pass; there the head of `loss.py` does the same sum in less.
"""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor, nn
from transformers.utils import is_triton_available
from trl import SFTConfig, SFTTrainer

from harness.training.trainer import StageTrainer

CHECKPOINTING_ARGUMENT = next(
    name for name in ("activation_checkpointing", "gradient_checkpointing") if name in SFTConfig.__dataclass_fields__
)
"""What the setting is called: transformers renamed it in 5.2x, and warns of the old name."""


class TrlTrainer(StageTrainer, SFTTrainer):
    """SFTTrainer with our batches, loss and records."""

    SFT_ARGUMENTS: ClassVar[dict[str, Any]] = {
        "dataset_kwargs": {"skip_prepare_dataset": True},
        "max_length": None,
        "packing": False,
        "loss_type": "nll",
        # On by default there; `prepared_for_trainer` sees to it, on the model itself.
        CHECKPOINTING_ARGUMENT: False,
        # Mixture-of-experts models: no balancing loss, as with transformers' default, so that both engines agree.
        "router_aux_loss_coef": 0.0,
    }
    _tag_names: Any = ()
    fused: bool | None = None
    """Whether TRL's fused head is used; None: where Triton runs, the devices on which it looks at trained positions
    alone."""

    def extra_init_kwargs(self) -> dict[str, Any]:
        """A data set of one row, for checks that ours has passed long before."""
        from datasets import Dataset

        return {"train_dataset": Dataset.from_list([{"input_ids": [0], "labels": [0]}])}

    def summed_nll(self, model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        """The sum from TRL's fused head, or from ours where that is the faster one."""
        fused = self.fused
        if fused is None:
            fused = is_triton_available() and self.args.device.type in ("cuda", "xpu")
        if not fused:
            return super().summed_nll(model, batch)
        return -model(**batch, use_cache=False, fused_lm_head=True).log_probs.sum()

    def _send_telemetry(self) -> None:
        pass
