"""The learning rate of each step."""

from __future__ import annotations

import pytest
import torch
from harness_optimizers.schedules import Constant, ConstantWithWarmup, Cosine, Linear, WarmupStableDecay
from transformers import get_scheduler, get_wsd_schedule

from harness.registry import discover_plugins
from harness.spec.component_options import fill_component_options

SCHEDULES = {
    "cosine": Cosine(0.0),
    "linear": Linear(0.0),
    "constant": Constant(),
    "constant_with_warmup": ConstantWithWarmup(),
}


def factors(schedule, warmup_steps, steps):
    return [schedule.factor(step, steps=steps, warmup_steps=warmup_steps) for step in range(steps)]


def factors_of_transformers(build, steps):
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    schedule = build(optimizer)
    expected = []
    for _ in range(steps):
        expected.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    return expected


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize(("warmup_steps", "steps"), [(0, 1), (0, 7), (3, 11), (5, 5)])
def test_schedule_after_the_warmup_is_that_of_transformers(name, warmup_steps, steps):
    expected = factors_of_transformers(
        lambda optimizer: get_scheduler(name, optimizer, num_warmup_steps=warmup_steps, num_training_steps=steps), steps
    )
    assert factors(SCHEDULES[name], warmup_steps, steps)[warmup_steps:] == pytest.approx(expected[warmup_steps:])


def test_the_linear_decay_of_wsd_is_that_of_transformers():
    expected = factors_of_transformers(
        lambda optimizer: get_wsd_schedule(optimizer, 3, 4, num_training_steps=20, decay_type="linear"), 20
    )
    assert factors(WarmupStableDecay(0.2, "linear", 0.0), 3, 20)[3:] == pytest.approx(expected[3:])


def test_the_sqrt_decay_of_wsd_falls_from_1_to_the_final_factor():
    schedule = WarmupStableDecay(0.4, "sqrt", 0.1)
    assert factors(schedule, 2, 10) == pytest.approx(
        [0.5, *[1.0] * 6, 0.1 + 0.9 * (1 - 0.25**0.5), 0.1 + 0.9 * (1 - 0.5**0.5), 0.1 + 0.9 * (1 - 0.75**0.5)]
    )
    assert schedule.factor(10, steps=10, warmup_steps=2) == pytest.approx(0.1)


@pytest.mark.parametrize("schedule", [Cosine(0.25), Linear(0.25)])
def test_a_schedule_falls_to_its_final_factor(schedule):
    assert schedule.factor(2, steps=10, warmup_steps=2) == 1.0
    assert schedule.factor(6, steps=10, warmup_steps=2) == pytest.approx(0.625)
    assert schedule.factor(10, steps=10, warmup_steps=2) == 0.25


@pytest.mark.parametrize("name", ["cosine", "linear", "constant_with_warmup"])
def test_warmup_rises_from_above_0_to_the_peak(name):
    assert factors(SCHEDULES[name], 4, 10)[:5] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert factors(SCHEDULES["constant"], 4, 10) == [1.0] * 10


@pytest.mark.parametrize("schedule", [*SCHEDULES.values(), WarmupStableDecay(0.2, "sqrt", 0.0)])
def test_every_step_has_a_rate_above_0(schedule):
    for steps in range(1, 12):
        for warmup_steps in range(steps + 1):
            assert min(factors(schedule, warmup_steps, steps)) > 0


def test_more_schedules_are_those_of_transformers():
    from transformers import optimization

    weight = torch.nn.Parameter(torch.ones(1))
    steps = 12
    references = {
        "polynomial": optimization.get_polynomial_decay_schedule_with_warmup(
            torch.optim.SGD([weight], lr=1.0), 0, steps, lr_end=0.0, power=2.0
        ),
        "cosine_with_restarts": optimization.get_cosine_with_hard_restarts_schedule_with_warmup(
            torch.optim.SGD([weight], lr=1.0), 0, steps, num_cycles=2
        ),
        "inverse_sqrt": optimization.get_inverse_sqrt_schedule(torch.optim.SGD([weight], lr=1.0), 0),
    }
    registry = discover_plugins()
    for name, reference in references.items():
        schedule = registry.create("schedulers", name, fill_component_options(registry, "schedulers", name, {}))
        factors = [schedule.factor(step, steps=steps, warmup_steps=0) for step in range(steps + 1)]
        assert factors == pytest.approx([reference.lr_lambdas[0](step) for step in range(steps + 1)]), name
