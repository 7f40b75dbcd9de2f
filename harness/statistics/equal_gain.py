"""The forgetting of a run where its gain reaches a target, between two evaluations within the run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from harness.statistics.seeds import Linearized, weighted_sum


@dataclass(frozen=True)
class Crossing:
    """Where a run's gain first reaches a target.

    Attributes:
        index: The evaluation before the crossing; the crossing is between `index` and `index` + 1.
        fraction: Its position between the two, in (0, 1].
    """

    index: int
    fraction: float


def find_crossing(gains: Sequence[float], target: float) -> Crossing | None:
    """Return where the gain first reaches the target, by linear interpolation; None if it does not.

    Args:
        gains: The gain at each evaluation, the first one before training.
        target: A gain above that of the first evaluation.
    """
    for index, (before, after) in enumerate(pairwise(gains)):
        if before < target <= after:
            return Crossing(index, (target - before) / (after - before))
    return None


def loss_at_crossing(gains: Sequence[Linearized], losses: Sequence[Linearized], crossing: Crossing) -> Linearized:
    """Return the forgetting at a crossing, interpolated linearly, with the contribution of every item.

    With t the fraction, F = (1 - t) F0 + t F1 and t = (g - G0) / (G1 - G0) for a given target g, so by the delta method
    dF = (1 - t) (dF0 - s dG0) + t (dF1 - s dG1) with the slope s = (F1 - F0) / (G1 - G0). An error of the gain moves
    the crossing, and so the forgetting, along this slope. The target itself is taken as given.

    Args:
        gains: The gain at each evaluation.
        losses: The forgetting at each evaluation, of items that have other keys than those of the gain.
        crossing: See `find_crossing`.
    """
    first, last, share = crossing.index, crossing.index + 1, crossing.fraction
    slope = (losses[last].value - losses[first].value) / (gains[last].value - gains[first].value)
    terms = [(1 - share, losses[first]), (share, losses[last])]
    value = sum(weight * loss.value for weight, loss in terms)
    terms += [(-slope * (1 - share), gains[first]), (-slope * share, gains[last])]
    return Linearized(value, weighted_sum(terms), losses[last].n)
