"""The contract of schedules of the learning rate."""

from __future__ import annotations

import math

from harness.testing.checks.declaration import check_light_creation
from harness.testing.component_under_test import ComponentUnderTest, require


def check_factors(subject: ComponentUnderTest) -> None:
    """The factor of every step is finite and at least 0, with and without a warm-up."""
    for steps, warmup_steps in ((1, 0), (1, 1), (10, 0), (10, 3), (10, 10)):
        scheduler = subject.create()
        factors = [scheduler.factor(step, steps=steps, warmup_steps=warmup_steps) for step in range(steps + 1)]
        is_valid = all(math.isfinite(factor) and factor >= 0 for factor in factors)
        require(is_valid, f"the factors of {steps} steps, {warmup_steps} of them warm-up, are {factors}")
        again = [subject.create().factor(step, steps=steps, warmup_steps=warmup_steps) for step in range(steps + 1)]
        require(again == factors, "a new instance gives other factors; they must depend on the step alone")


CHECKS = (check_light_creation, check_factors)
