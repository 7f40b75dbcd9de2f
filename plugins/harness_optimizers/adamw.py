"""Optimizers `adamw`, `adamw_8bit` and their paged forms (Loshchilov and Hutter, 2019, arXiv:1711.05101)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, ClassVar

from harness import Component, HarnessError, Optimizer

if TYPE_CHECKING:
    import torch

ADAM_OPTIONS: dict[str, Any] = {
    "betas": {
        "type": "array",
        "items": {"type": "number", "minimum": 0, "exclusiveMaximum": 1},
        "minItems": 2,
        "maxItems": 2,
        "default": [0.9, 0.999],
        "description": "Decay of the running means of the gradient and of its square.",
    },
    "eps": {
        "type": "number",
        "exclusiveMinimum": 0,
        "default": 1e-8,
        "description": "Added to the root of the mean square.",
    },
}

COMPONENTS: dict[str, Component] = {
    "adamw": Component(
        summary="AdamW of torch in its fused form, with decoupled weight decay.",
        factory="harness_optimizers.adamw:AdamW",
        options=ADAM_OPTIONS,
    ),
    "adamw_8bit": Component(
        summary="AdamW of bitsandbytes, whose state takes 2 bytes a weight instead of 8.",
        factory="harness_optimizers.adamw:AdamW8bit",
        options=ADAM_OPTIONS,
    ),
    "paged_adamw_8bit": Component(
        summary="AdamW with 8 bits whose state moves to main memory when a GPU is full. Needs a GPU.",
        factory="harness_optimizers.adamw:PagedAdamW8bit",
        options=ADAM_OPTIONS,
    ),
    "paged_adamw": Component(
        summary="AdamW with a float32 state that moves to main memory when a GPU is full. Needs a GPU.",
        factory="harness_optimizers.adamw:PagedAdamW",
        options=ADAM_OPTIONS,
    ),
}


class AdamW(Optimizer):
    """AdamW. Its state takes 8 bytes a weight."""

    works_on_shards: ClassVar[bool] = True

    def __init__(self, betas: Sequence[float], eps: float) -> None:
        self.betas, self.eps = (float(betas[0]), float(betas[1])), eps

    def build(self, param_groups: Sequence[dict[str, Any]], settings: Mapping[str, Any]) -> torch.optim.Optimizer:
        """Return torch's AdamW; fused, since other forms take several times as long on a CPU."""
        import torch

        return torch.optim.AdamW(param_groups, lr=settings["learning_rate"], betas=self.betas, eps=self.eps, fused=True)


class AdamW8bit(AdamW):
    """AdamW with block-wise quantized state (Dettmers et al., 2022, arXiv:2110.02861).

    bitsandbytes keeps the state of weights with fewer than 4096 elements in float32.
    """

    works_on_shards: ClassVar[bool] = False
    bytes_per_weight: ClassVar[float] = 2.03  # with a float32 scale for each block of 256
    name = "adamw_8bit"

    def build(self, param_groups: Sequence[dict[str, Any]], settings: Mapping[str, Any]) -> torch.optim.Optimizer:
        """Return bitsandbytes' AdamW8bit."""
        import bitsandbytes

        optimizer: torch.optim.Optimizer = bitsandbytes.optim.AdamW8bit(
            self._filled(param_groups), lr=settings["learning_rate"], betas=self.betas, eps=self.eps
        )
        return optimizer

    def check_available(self) -> None:
        """Require bitsandbytes.

        Raises:
            HarnessError: It is not installed.
        """
        if find_spec("bitsandbytes") is None:
            hint = 'pip install "harness-sft[quantization]"'
            raise HarnessError(f"optimizer {self.name}", "bitsandbytes is not installed", hint)

    @staticmethod
    def _filled(param_groups: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """Return the groups that have weights: bitsandbytes accepts no others."""
        return [group for group in param_groups if group["params"]]


class PagedAdamW8bit(AdamW8bit):
    """AdamW8bit with its state in unified memory."""

    name = "paged_adamw_8bit"
    class_name: ClassVar[str] = "PagedAdamW8bit"
    on_cpu: ClassVar[str] = "adamw_8bit"

    def build(self, param_groups: Sequence[dict[str, Any]], settings: Mapping[str, Any]) -> torch.optim.Optimizer:
        """Return bitsandbytes' optimizer.

        Raises:
            HarnessError: The weights are not on a GPU.
        """
        import bitsandbytes

        groups = self._filled(param_groups)
        if groups[0]["params"][0].device.type == "cpu":
            raise HarnessError(f"optimizer {self.name}", "the model is not on a GPU", f'use "{self.on_cpu}"')
        build = getattr(bitsandbytes.optim, self.class_name)
        optimizer: torch.optim.Optimizer = build(groups, lr=settings["learning_rate"], betas=self.betas, eps=self.eps)
        return optimizer


class PagedAdamW(PagedAdamW8bit):
    """AdamW of bitsandbytes with a float32 state in unified memory."""

    bytes_per_weight: ClassVar[float] = 8.0
    name = "paged_adamw"
    class_name: ClassVar[str] = "PagedAdamW32bit"
    on_cpu: ClassVar[str] = "adamw"
