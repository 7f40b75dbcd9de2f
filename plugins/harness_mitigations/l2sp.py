"""L2-SP: every weight is pulled to where it started, all alike (Li et al., 2018, arXiv:1802.01483).

Adds lambda / 2 * sum of (theta - theta0)^2 to what is minimised. It needs no data of what is to be kept, and is the
control for EWC: what EWC does beyond it is what the Fisher information is worth.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal

from harness.types import Row, Stage
from harness_mitigations.weight_anchor import Anchored, Coupling, Place

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class L2Sp(Anchored):
    """Hold all weights near where they were: before the run, or before each stage.

    strength: lambda, the unit of a normalised EWC. coupling, place: see `Anchored`. anchor: `base`, the weights before
    the first stage, for all stages; `stage`, those before each.
    """

    def __init__(self, strength: float, coupling: Coupling, anchor: Literal["base", "stage"], place: Place) -> None:
        super().__init__("l2sp", strength, coupling, place)
        self.origin = anchor

    def begin_stage(self, stage: Stage, model: PreTrainedModel, rows: Mapping[str, Sequence[Row]]) -> None:
        """Anchor the weights as they are, unless they are to be held at an earlier place."""
        begun = bool(self.anchor or self.changes)
        if self.strength != 0 and (self.origin == "stage" or not begun):
            self._anchor(self._moving(model))
