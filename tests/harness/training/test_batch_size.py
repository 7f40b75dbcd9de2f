"""`train.find_batch_size`: the batch follows the memory, and a step stays the same."""

from __future__ import annotations

import warnings

import pytest
import torch

from harness.training import memory_estimate
from harness.training.memory_estimate import activation_size, estimate_stage, with_fitting_settings

DTYPE = None


@pytest.fixture
def with_memory(monkeypatch):
    """A function that sets the available bytes."""

    def set_memory(size):
        available = size / memory_estimate.USABLE_SHARE
        monkeypatch.setattr(memory_estimate, "available_bytes", lambda device, processes: available)

    return set_memory


def chosen(model, data):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        train = with_fitting_settings(model, data, DTYPE, 8.0).stage.train
    return train["batch_size"], train["accumulation"]


def test_the_batch_is_the_largest_divisor_that_fits(make_stage, make_rows, tiny_model, with_memory):
    data = make_stage(make_rows(24), batch_size=4, accumulation=3, find_batch_size=True)
    row = max(len(row.input_ids) for row in data.rows)
    stored = activation_size(tiny_model).stored
    needed = {
        size: estimate_stage(tiny_model, size * row, size * row * stored, DTYPE, 8.0, size < 12).peak
        for size in (12, 6, 1)
    }
    with_memory(needed[12])
    assert chosen(tiny_model, data) == (12, 1)
    with_memory(needed[6])
    assert chosen(tiny_model, data) == (6, 2)
    with_memory(needed[1])
    assert chosen(tiny_model, data) == (1, 12)
    with_memory(0)
    assert chosen(tiny_model, data) == (1, 12)


def test_a_step_has_the_same_gradient_and_the_choice_is_named(make_stage, make_rows, fit, with_memory):
    rows = make_rows(12)
    given, _, gradients = fit(make_stage(rows, batch_size=4, accumulation=3))
    with_memory(0)
    with pytest.warns(UserWarning, match="find_batch_size chose batch_size 1 and accumulation 12"):
        found, _, others = fit(make_stage(rows, batch_size=4, accumulation=3, find_batch_size=True))
    assert len(gradients) == len(others) == 1
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(others[0][name], gradient, rtol=1e-4, atol=1e-6)
    for weight, other in zip(given.parameters(), found.parameters(), strict=True):
        torch.testing.assert_close(other, weight, rtol=1e-3, atol=2e-3)
