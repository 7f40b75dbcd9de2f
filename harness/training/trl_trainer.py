"""The engine based on TRL's SFTTrainer.

It switches off SFTTrainer's rendering, packing, model card and telemetry. It keeps the fused head, which never builds
the logits, on devices with Triton. Elsewhere TRL applies that head to every position, prompts and padding too, and
recomputes it in the backward pass; there `harness.training.loss` computes the same sum in less time.
"""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor, nn
from transformers.utils.import_utils import is_triton_available
from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import SFTTrainer

from harness.training.stage_trainer import StageTrainer

CHECKPOINTING_ARGUMENT = next(
    name for name in ("activation_checkpointing", "gradient_checkpointing") if name in SFTConfig.__dataclass_fields__
)
"""Name of the setting: transformers renamed it in 5.2x, and warns of the old name."""


class TrlTrainer(StageTrainer, SFTTrainer):
    """SFTTrainer with our batches, loss and log."""

    SFT_ARGUMENTS: ClassVar[dict[str, Any]] = {
        "dataset_kwargs": {"skip_prepare_dataset": True},
        "max_length": None,
        "packing": False,
        "loss_type": "nll",
        # On by default in TRL; `prepared_for_trainer` switches it on the model itself.
        CHECKPOINTING_ARGUMENT: False,
        # Mixture-of-experts models: no balancing loss, as with transformers' default, so that both engines agree.
        "router_aux_loss_coef": 0.0,
    }
    _tag_names: Any = ()
    fused: bool | None = None
    """Whether to use TRL's fused head; None: only where Triton runs, so that it computes only trained positions."""

    def extra_init_kwargs(self) -> dict[str, Any]:
        """Return a dataset of one row, for checks of SFTTrainer that our rows have already passed."""
        from datasets import Dataset

        return {"train_dataset": Dataset.from_list([{"input_ids": [0], "labels": [0]}])}

    def summed_nll(self, model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        """Return the sum from TRL's fused head, or from ours where ours is faster."""
        use_fused_head = self.fused
        if use_fused_head is None:
            use_fused_head = is_triton_available() and self.args.device.type in ("cuda", "xpu")
        if not use_fused_head:
            return super().summed_nll(model, batch)
        log_probs: Tensor = model(**batch, use_cache=False, fused_lm_head=True).log_probs
        return -log_probs.sum()

    def _send_telemetry(self) -> None:
        pass
