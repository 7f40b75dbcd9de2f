"""When a stage has learned enough: a combined score, and how long it has not got better.

Knows numbers alone; a state is what the evaluations so far make of it, so that nothing has to be kept for a resume.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any


def combined(
    scores: Mapping[str, float], start: Mapping[str, float], higher: Mapping[str, bool], weights: Mapping[str, float]
) -> float:
    """The weighted sum of relative improvements over `start`, positive for the better; NaN when a score is no number.

    scores, start: `suite/score` -> value. higher: -> whether higher is better. A start of 0 has nothing to be relative
    to: there the improvement counts as it is.
    """
    total = 0.0
    for name, weight in weights.items():
        gained = scores[name] - start[name] if higher[name] else start[name] - scores[name]
        total += weight * gained / (abs(start[name]) or 1.0)
    return total


class Stopping:
    """The best combined score of a stage so far, and the evaluations since then.

    settings: the spec's `early_stopping`. best: the update of the best evaluation; None before there is one.
    """

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self.patience, self.min_delta = int(settings["patience"]), float(settings["min_delta"])
        self.best: int | None = None
        self.value = -math.inf
        self.since = 0

    def take(self, step: int, value: float) -> bool:
        """Take in the combined score after an update; whether it is the best so far. NaN is no improvement."""
        if math.isfinite(value) and (self.best is None or value > self.value + self.min_delta):
            self.best, self.value, self.since = step, value, 0
            return True
        self.since += 1
        return False

    @property
    def over(self) -> bool:
        """Whether the stage has gone on long enough without getting better."""
        return self.since >= self.patience
