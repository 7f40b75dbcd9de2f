"""Mitigation `l2sp`: every weight is regularized towards its starting point (Li et al., 2018, arXiv:1802.01483).

Adds lambda / 2 * sum of (theta - theta0)^2 to the objective. It needs no data of what is to be preserved. It is the
control for EWC: the difference between the two is the benefit of the Fisher information.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal

from harness import Component
from harness.types import Stage, TokenizedExample
from harness_mitigations.weight_anchor import COUPLING_OPTION, PLACE_OPTION, AnchoredWeights, Coupling, StorageDevice

if TYPE_CHECKING:
    from transformers import PreTrainedModel

COMPONENTS: dict[str, Component] = {
    "l2sp": Component(
        summary="Penalizes the distance of all weights from where they started (L2-SP, arXiv:1802.01483).",
        factory="harness_mitigations.l2sp:L2Sp",
        options={
            "strength": {
                "type": "number",
                "minimum": 0,
                "default": 1.0,
                "description": "Factor of the penalty, in the same unit as that of EWC with a normalized Fisher.",
            },
            "coupling": COUPLING_OPTION,
            "anchor": {
                "enum": ["base", "stage"],
                "default": "base",
                "description": "The weights that the distance is measured from: those before the first stage, or those "
                "before each stage.",
            },
            "place": PLACE_OPTION,
        },
    ),
}


class L2Sp(AnchoredWeights):
    """Penalize the distance of all weights from those before the run, or before each stage.

    Args:
        strength: lambda, in the unit of EWC with a normalized Fisher.
        coupling: see `weight_anchor`.
        anchor: `base`: the weights before the first stage, for all stages; `stage`: those before each stage.
        place: see `AnchoredWeights`.
    """

    def __init__(
        self, strength: float, coupling: Coupling, anchor: Literal["base", "stage"], place: StorageDevice
    ) -> None:
        super().__init__("l2sp", strength, coupling, place)
        self.anchor_at = anchor

    def on_stage_start(
        self, stage: Stage, model: PreTrainedModel, rows: Mapping[str, Sequence[TokenizedExample]], *, seed: int
    ) -> None:
        """Set the anchor to the weights as they are, unless an earlier anchor is to be kept."""
        self.warn_of_clipping()
        has_anchor = bool(self.anchor or self.lora_anchors)
        if self.strength != 0 and (self.anchor_at == "stage" or not has_anchor):
            self._set_anchor(self._trainable_weights(model))
