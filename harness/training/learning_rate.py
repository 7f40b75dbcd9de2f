"""The learning rate of each step: warm-up, then the schedule."""

from __future__ import annotations

import math


def learning_rate_factor(step: int, *, scheduler: str, warmup_steps: int, steps: int) -> float:
    """Return the factor of the peak learning rate at a step.

    Step k of W warm-up steps has the factor k / W, so that every step trains. A later step k of N has the progress
    p = (k - 1 - W) / (N - W); `linear` has the factor 1 - p and `cosine` (1 + cos(pi p)) / 2. Both are as in
    transformers, whose warm-up has (k - 1) / W and loses its first step.

    Args:
        step: The index of the step, from 0: k - 1. At N, after the last step, the factor may be 0.
        scheduler: `constant`, which ignores the warm-up, `constant_with_warmup`, `linear` or `cosine`.
        warmup_steps: W, 0 to N.
        steps: N, at least 1.
    """
    if scheduler == "constant":
        return 1.0
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    if scheduler == "constant_with_warmup":
        return 1.0
    progress = min((step - warmup_steps) / max(1, steps - warmup_steps), 1.0)
    if scheduler == "linear":
        return 1.0 - progress
    assert scheduler == "cosine", scheduler
    return (1.0 + math.cos(math.pi * progress)) / 2
