"""Mitigation `repair`: weights return towards the start of the stage when an evaluation within it finds forgetting.

After each mid-stage evaluation the primary score of every monitored suite is compared with that of the evaluation
before the stage. If one is worse by more than the tolerance, every trainable weight moves:

    theta <- theta + pull * (theta_start - theta)

The optimizer continues from there with its own state. Sequential fine-tuning with averaging does the same at fixed
intervals, without scores (SFA, arXiv:2501.05559).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from harness import Component, SuiteScores
from harness.errors import HarnessError
from harness.interfaces.mitigation import Mitigation
from harness.types import Stage, TokenizedExample

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

COMPONENTS: dict[str, Component] = {
    "repair": Component(
        summary="Moves the weights back towards the start of a stage when a suite gets worse within it.",
        factory="harness_mitigations.repair:Repair",
        options={
            "suites": {
                "type": ["array", "null"],
                "items": {"type": "string"},
                "minItems": 1,
                "uniqueItems": True,
                "default": None,
                "description": "The suites whose primary scores are monitored, e.g. those of earlier stages. null: "
                "every general suite that mid-stage evaluations measure.",
            },
            "tolerance": {
                "type": ["number", "null"],
                "minimum": 0,
                "default": None,
                "description": "How much worse a primary score may be than before the stage, in units of the score. "
                "null: the margin of the suite.",
            },
            "pull": {
                "type": "number",
                "exclusiveMinimum": 0,
                "maximum": 1,
                "default": 0.5,
                "description": "Fraction of the way to the start of the stage that every weight moves; 1: all of it.",
            },
            "max_repairs": {
                "type": ["integer", "null"],
                "minimum": 1,
                "default": None,
                "description": "Maximum number of repairs in a stage. null: as many as there are evaluations.",
            },
            "place": {
                "enum": ["device", "cpu"],
                "default": "device",
                "description": "Where the weights of the start are stored: on the device of the weights, or in main "
                "memory.",
            },
        },
    ),
}


def pull_weights(weights: Sequence[Tensor], start: Sequence[Tensor], fraction: float) -> float:
    """Move each weight the fraction of the way to its start, in place; 1 gives the start bit for bit.

    Args:
        weights: theta.
        start: theta_start, of the same shapes. It may be on another device.
        fraction: pull, in (0, 1].

    Returns:
        The Euclidean distance of all weights from their start, before they are moved.
    """
    import torch

    norms = []
    with torch.no_grad():
        for weight, target in zip(weights, start, strict=True):  # one copy at a time
            target = target.to(weight.device, weight.dtype)
            norms.append(torch.linalg.vector_norm(weight.detach().float() - target.float()))
            weight.lerp_(target, fraction)
    return float(torch.linalg.vector_norm(torch.stack([norm.cpu() for norm in norms])))


class Repair(Mitigation):
    """Return the weights towards the start of the stage when a monitored suite has got worse.

    Args:
        suites: names of the monitored suites; None: every general suite that is measured.
        tolerance: how much worse a primary score may be, at least 0; None: the margin of the suite.
        pull: fraction of the way to the start, in (0, 1].
        max_repairs: maximum number of repairs in a stage; None: without a limit.
        place: where the weights of the start are stored, `device` or `cpu`.
    """

    priority: ClassVar[int] = 30
    """After the others: their changes at the start of a stage are part of its start."""

    def __init__(
        self, suites: Sequence[str] | None, tolerance: float | None, pull: float, max_repairs: int | None, place: str
    ) -> None:
        self.tolerance, self.pull, self.max_repairs, self.place = tolerance, pull, max_repairs, place
        self.monitored_suites = None if suites is None else tuple(suites)
        self.start: dict[str, Tensor] = {}
        self.repairs = 0  # in this stage

    def check_compatible(self, others: Mapping[str, Mitigation]) -> None:
        """Reject an adapter with which a stage begins at other weights than were evaluated before it."""
        if "merged_lora" in others:
            what = "with 'merged_lora' a stage begins at other weights than were evaluated before it"
            raise HarnessError("mitigations.repair", what, "remove repair, or replace 'merged_lora' by 'lora'")

    def held_bytes(self, model: PreTrainedModel, *, itemsize: int) -> int:
        """Return the bytes of the weights of the start, float32."""
        if self.place == "cpu":
            return 0
        return 4 * sum(weight.numel() for weight in model.parameters() if weight.requires_grad)

    def on_stage_start(
        self, stage: Stage, model: PreTrainedModel, rows: Mapping[str, Sequence[TokenizedExample]], *, seed: int
    ) -> None:
        """Copy the trainable weights."""
        import torch

        self.repairs = 0
        self.start = {
            name: weight.detach().to("cpu" if self.place == "cpu" else weight.device, torch.float32, copy=True)
            for name, weight in model.named_parameters()
            if weight.requires_grad
        }

    def on_evaluation(
        self, stage: Stage, model: PreTrainedModel, scores: Mapping[str, SuiteScores]
    ) -> Mapping[str, float]:
        """Move the weights towards the start if a monitored suite has got worse by more than the tolerance.

        Returns:
            `pulls`, the number of repairs in this stage. For a repair also `distance`, that of the weights from the
            start before it, and `triggered.<suite>` of each suite that was worse, which is 1.
        """
        worse = [name for name in self._monitored(scores) if self._is_worse(scores[name])]
        if not worse or self.repairs == self.max_repairs:
            return {"pulls": self.repairs}
        weights = dict(model.named_parameters())
        distance = pull_weights([weights[name] for name in self.start], list(self.start.values()), self.pull)
        self.repairs += 1
        triggers = {f"triggered.{name}": 1.0 for name in worse}
        return {"pulls": self.repairs, "distance": distance, **triggers}

    def on_stage_end(self, stage: Stage, model: PreTrainedModel, rows: Sequence[TokenizedExample]) -> None:
        """Forget the start of the stage."""
        self.start = {}

    def state_dict(self) -> dict[str, Any]:
        """Return the weights of the start by name, and the number of repairs in this stage."""
        return {"start": self.start, "repairs": self.repairs}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the state."""
        self.start, self.repairs = dict(state["start"]), int(state["repairs"])

    def _monitored(self, scores: Mapping[str, SuiteScores]) -> Sequence[str]:
        if self.monitored_suites is not None:
            return self.monitored_suites
        return [name for name, suite in scores.items() if suite.role == "general" and suite.primary is not None]

    def _is_worse(self, scores: SuiteScores) -> bool:
        """Return whether the primary score is worse by more than the tolerance; NaN is, after a finite start."""
        assert scores.primary is not None, "the core verifies that it is measured"
        tolerance = scores.margin if self.tolerance is None else self.tolerance
        assert tolerance is not None, "a primary score has a margin"
        return math.isfinite(scores.start[scores.primary]) and not scores.worsening(scores.primary) <= tolerance
