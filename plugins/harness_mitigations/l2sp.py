"""L2-SP: every weight is pulled to where it started, all alike (Li et al., 2018, arXiv:1802.01483).

Adds lambda / 2 * sum of (theta - theta0)^2 to what is minimised. It needs no data of what is to be kept, and is the
control for EWC: what EWC does beyond it is what the Fisher information is worth.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal

from harness.types import Stage, TokenizedExample
from harness_mitigations.weight_anchor import AnchoredWeights, Coupling, StorageDevice

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class L2Sp(AnchoredWeights):
    """Hold all weights near where they were: before the run, or before each stage.

    strength: lambda, the unit of a normalised EWC. coupling, place: see `AnchoredWeights`. anchor: `base`, the weights
    before the first stage, for all stages; `stage`, those before each.
    """

    def __init__(
        self, strength: float, coupling: Coupling, anchor: Literal["base", "stage"], place: StorageDevice
    ) -> None:
        super().__init__("l2sp", strength, coupling, place)
        self.anchor_at = anchor

    def on_stage_start(
        self, stage: Stage, model: PreTrainedModel, rows: Mapping[str, Sequence[TokenizedExample]]
    ) -> None:
        """Anchor the weights as they are, unless they are to be held at an earlier place."""
        begun = bool(self.anchor or self.lora_anchors)
        if self.strength != 0 and (self.anchor_at == "stage" or not begun):
            self._set_anchor(self._trainable_weights(model))
