"""The schedules of `train.scheduler`: the learning rate after the warm-up.

Step k of N, after W steps of warm-up, has the progress p = (k - 1 - W) / (N - W). The schedules are those of
transformers, whose warm-up has (k - 1) / W and loses its first step.
"""

from __future__ import annotations

import math
from typing import Any, Literal

from harness import Component, Scheduler
from harness.interfaces.scheduler import warmup_factor
from harness.utils.rounding import round_up_count

FINAL_OPTION: dict[str, Any] = {
    "final": {
        "type": "number",
        "minimum": 0,
        "maximum": 1,
        "default": 0.0,
        "description": "Factor of the peak learning rate that it falls to, reached after the last step.",
    },
}

COMPONENTS: dict[str, Component] = {
    "cosine": Component(
        summary="Warm-up, then half a cosine wave down to `final`.",
        factory="harness_optimizers.schedules:Cosine",
        options=FINAL_OPTION,
    ),
    "linear": Component(
        summary="Warm-up, then a straight line down to `final`.",
        factory="harness_optimizers.schedules:Linear",
        options=FINAL_OPTION,
    ),
    "constant": Component(
        summary="The peak learning rate in every step, without warm-up.",
        factory="harness_optimizers.schedules:Constant",
    ),
    "constant_with_warmup": Component(
        summary="Warm-up, then the peak learning rate.",
        factory="harness_optimizers.schedules:ConstantWithWarmup",
    ),
    "cosine_with_restarts": Component(
        summary="Warm-up, then several cosine waves down to `final`, each from the peak learning rate.",
        factory="harness_optimizers.schedules:CosineWithRestarts",
        options={
            "cycles": {"type": "integer", "minimum": 1, "default": 2, "description": "Number of waves."},
            **FINAL_OPTION,
        },
    ),
    "polynomial": Component(
        summary="Warm-up, then a power of the remaining progress, down to `final`.",
        factory="harness_optimizers.schedules:Polynomial",
        options={
            "power": {
                "type": "number",
                "exclusiveMinimum": 0,
                "default": 2.0,
                "description": "Exponent; 1 is a straight line.",
            },
            **FINAL_OPTION,
        },
    ),
    "inverse_sqrt": Component(
        summary="Warm-up, then the inverse square root of the step, without an end.",
        factory="harness_optimizers.schedules:InverseSqrt",
    ),
    "wsd": Component(
        summary="Warm-up, the peak learning rate, and a short decay at the end (arXiv:2405.18392).",
        factory="harness_optimizers.schedules:WarmupStableDecay",
        options={
            "decay_ratio": {
                "type": "number",
                "exclusiveMinimum": 0,
                "maximum": 1,
                "default": 0.2,
                "description": "Fraction of the stage's steps in which the learning rate falls. Usual: 0.1 to 0.2.",
            },
            "shape": {
                "enum": ["sqrt", "linear"],
                "default": "sqrt",
                "description": "The fall at the progress q of the decay: sqrt is 1 - sqrt(q), linear is 1 - q.",
            },
            **FINAL_OPTION,
        },
    ),
}


def progress_after_warmup(step: int, steps: int, warmup_steps: int) -> float:
    """Return the progress p of a step after the warm-up, in [0, 1]."""
    return min((step - warmup_steps) / max(1, steps - warmup_steps), 1.0)


class Constant(Scheduler):
    """The factor 1."""

    def factor(self, step: int, *, steps: int, warmup_steps: int) -> float:
        """Return 1."""
        return 1.0


class ConstantWithWarmup(Scheduler):
    """Warm-up, then the factor 1."""

    def factor(self, step: int, *, steps: int, warmup_steps: int) -> float:
        """Return the factor of a step."""
        warmup = warmup_factor(step, warmup_steps)
        return 1.0 if warmup is None else warmup


class Linear(Scheduler):
    """Warm-up, then 1 - p, scaled to end at `final`."""

    def __init__(self, final: float) -> None:
        self.final = final

    def factor(self, step: int, *, steps: int, warmup_steps: int) -> float:
        """Return the factor of a step."""
        warmup = warmup_factor(step, warmup_steps)
        if warmup is not None:
            return warmup
        return self.final + (1.0 - self.final) * self.shape(progress_after_warmup(step, steps, warmup_steps))

    def shape(self, progress: float) -> float:
        """Return the factor that falls from 1 to 0."""
        return 1.0 - progress


class Cosine(Linear):
    """Warm-up, then (1 + cos(pi p)) / 2, scaled to end at `final`."""

    def shape(self, progress: float) -> float:
        """Return the factor that falls from 1 to 0."""
        return (1.0 + math.cos(math.pi * progress)) / 2


class CosineWithRestarts(Linear):
    """Warm-up, then (1 + cos(pi c)) / 2 with the progress c of each cycle, scaled to end at `final`."""

    def __init__(self, cycles: int, final: float) -> None:
        super().__init__(final)
        self.cycles = cycles

    def shape(self, progress: float) -> float:
        """Return the factor that falls from 1 to 0 in each cycle."""
        return 0.0 if progress >= 1.0 else (1.0 + math.cos(math.pi * (self.cycles * progress % 1.0))) / 2


class Polynomial(Linear):
    """Warm-up, then (1 - p)^power, scaled to end at `final`."""

    def __init__(self, power: float, final: float) -> None:
        super().__init__(final)
        self.power = power

    def shape(self, progress: float) -> float:
        """Return the factor that falls from 1 to 0."""
        return float((1.0 - progress) ** self.power)


class InverseSqrt(Scheduler):
    """Warm-up over W steps, then sqrt(W / (k + W)) at the k-th step after it, with W = 10,000 without warm-up."""

    def factor(self, step: int, *, steps: int, warmup_steps: int) -> float:
        """Return the factor of a step."""
        warmup = warmup_factor(step, warmup_steps)
        timescale = warmup_steps or 10_000
        return math.sqrt(timescale / (step - warmup_steps + timescale)) if warmup is None else warmup


class WarmupStableDecay(Scheduler):
    """Warm-up, then 1, then a decay in the last steps.

    Args:
        decay_ratio: Fraction of the steps that decay, rounded up. The warm-up comes first where both do not fit.
        shape: `sqrt` or `linear`.
        final: The factor after the last step.
    """

    def __init__(self, decay_ratio: float, shape: Literal["sqrt", "linear"], final: float) -> None:
        self.decay_ratio, self.shape, self.final = decay_ratio, shape, final

    def factor(self, step: int, *, steps: int, warmup_steps: int) -> float:
        """Return the factor of a step. The first step of the decay has the factor 1, as that of `linear`."""
        warmup = warmup_factor(step, warmup_steps)
        if warmup is not None:
            return warmup
        decay_steps = min(round_up_count(self.decay_ratio, steps), steps - warmup_steps)
        progress = (step - (steps - decay_steps)) / max(1, decay_steps)  # q
        if progress <= 0:
            return 1.0
        progress = min(progress, 1.0)
        return self.final + (1.0 - self.final) * (1.0 - (progress if self.shape == "linear" else math.sqrt(progress)))
