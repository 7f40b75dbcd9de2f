"""The learning rate of each step."""

from __future__ import annotations

import pytest
import torch
from transformers import get_scheduler

from harness.training.learning_rate import learning_rate_factor

SCHEDULERS = ("cosine", "linear", "constant", "constant_with_warmup")


def factors(scheduler, warmup_steps, steps):
    return [
        learning_rate_factor(step, scheduler=scheduler, warmup_steps=warmup_steps, steps=steps) for step in range(steps)
    ]


@pytest.mark.parametrize("scheduler", SCHEDULERS)
@pytest.mark.parametrize(("warmup_steps", "steps"), [(0, 1), (0, 7), (3, 11), (5, 5)])
def test_schedule_after_the_warmup_is_that_of_transformers(scheduler, warmup_steps, steps):
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    schedule = get_scheduler(scheduler, optimizer, num_warmup_steps=warmup_steps, num_training_steps=steps)
    expected = []
    for _ in range(steps):
        expected.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    assert factors(scheduler, warmup_steps, steps)[warmup_steps:] == pytest.approx(expected[warmup_steps:])


@pytest.mark.parametrize("scheduler", ["cosine", "linear", "constant_with_warmup"])
def test_warmup_rises_from_above_0_to_the_peak(scheduler):
    assert factors(scheduler, 4, 10)[:5] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert factors("constant", 4, 10) == [1.0] * 10


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_every_step_has_a_rate_above_0(scheduler):
    for steps in range(1, 12):
        for warmup_steps in range(steps + 1):
            assert min(factors(scheduler, warmup_steps, steps)) > 0
