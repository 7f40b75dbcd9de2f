"""The contract of optimizers."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from harness.errors import ComponentError, HarnessError
from harness.spec_keys import training
from harness.testing.checks.declaration import check_light_creation
from harness.testing.component_under_test import CheckSkipped, ComponentUnderTest, require

if TYPE_CHECKING:
    import torch

LEARNING_RATE = 0.01
STEPS = 30
SETTINGS: Mapping[str, Any] = {
    **{name: option["default"] for name, option in training.TRAIN_KEYS.items() if "default" in option},
    "learning_rate": LEARNING_RATE,
    "weight_decay": 0.0,
}
"""The `train` settings of the stage."""


def check_descent(subject: ComponentUnderTest) -> None:
    """Steps along the gradient of a squared distance reduce it."""
    weights, optimizer = _build(subject)
    before = _loss(weights).item()
    for _ in range(STEPS):
        _step(weights, optimizer)
    after = _loss(weights).item()
    require(after < before, f"{STEPS} steps changed the squared distance from {before:.4g} to {after:.4g}")


def check_learning_rate(subject: ComponentUnderTest) -> None:
    """A learning rate of 0, which the schedule may set, changes no weight."""
    import torch

    weights, optimizer = _build(subject)
    _step(weights, optimizer)
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    before = [weight.detach().clone() for weight in weights]
    _step(weights, optimizer)
    unchanged = all(torch.equal(old, new) for old, new in zip(before, weights, strict=True))
    require(unchanged, "the weights changed; read the `lr` of the groups at each step")


def check_state(subject: ComponentUnderTest) -> None:
    """An optimizer that loads the state takes the same steps, as a resumed stage does."""
    import torch

    weights, optimizer = _build(subject)
    _step(weights, optimizer)
    copies, resumed = _build(subject)
    with torch.no_grad():
        for copied, weight in zip(copies, weights, strict=True):
            copied.copy_(weight)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for _ in range(2):
        _step(weights, optimizer)
        _step(copies, resumed)
    equal = all(torch.equal(first, second) for first, second in zip(weights, copies, strict=True))
    require(equal, "the weights differ after two steps; keep all state in the optimizer's `state`")


def _build(subject: ComponentUnderTest) -> tuple[list[torch.nn.Parameter], Any]:
    """Return a matrix and a vector, in groups of their own as a stage has them, and their optimizer."""
    import torch

    torch.set_num_threads(1)
    weights = [
        torch.nn.Parameter(torch.linspace(-2.0, 2.0, size).reshape(shape)) for size, shape in ((12, (4, 3)), (5, (5,)))
    ]
    groups = [{"params": [weight], "lr": LEARNING_RATE, "weight_decay": 0.0} for weight in weights]
    component = subject.create()
    try:
        component.check_available()
        return weights, component.build(groups, SETTINGS)
    except ComponentError:
        raise
    except HarnessError as error:  # it needs a package or a device
        raise CheckSkipped(f"{error.what}; {error.hint}") from None


def _loss(weights: list[torch.nn.Parameter]) -> torch.Tensor:
    """Return half the squared distance of the weights from 0.5."""
    import torch

    return torch.stack([(weight - 0.5).square().sum() / 2 for weight in weights]).sum()


def _step(weights: list[torch.nn.Parameter], optimizer: Any) -> None:
    optimizer.zero_grad()
    _loss(weights).backward()
    optimizer.step()


CHECKS = (check_light_creation, check_descent, check_learning_rate, check_state)
