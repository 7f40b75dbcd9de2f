"""The built-in mitigations: methods to forget less."""

from __future__ import annotations

from harness import Component, hookimpl
from harness_mitigations import (
    ema,
    ewc,
    freeze,
    kl,
    l2sp,
    lora,
    lr_scale,
    merged_lora,
    mixing,
    oft,
    orthogonal_lora,
    osf,
    repair,
    replay,
    reweight,
    self_distill,
    token_masking,
    wise_ft,
)

__all__ = ["harness_mitigations"]

COMPONENT_MODULES = (
    *(mixing, replay, self_distill),  # data
    *(ewc, l2sp, lr_scale),  # weights
    *(kl, token_masking, reweight),  # predictions
    *(lora, orthogonal_lora, merged_lora, osf, oft),  # adapters
    freeze,
    *(wise_ft, ema, repair),  # averages
)


@hookimpl
def harness_mitigations() -> dict[str, Component]:
    """Return the built-in mitigations by name."""
    return {name: component for module in COMPONENT_MODULES for name, component in module.COMPONENTS.items()}
