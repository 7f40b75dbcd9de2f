"""Each optimizer makes the step of its paper; `adamw` is the one that transformers would build."""

from __future__ import annotations

import pytest
import torch
from harness_optimizers.adafactor import Adafactor
from harness_optimizers.adamw import AdamW, AdamW8bit, PagedAdamW, PagedAdamW8bit
from harness_optimizers.lion import Lion
from harness_optimizers.mofo import Mofo
from harness_optimizers.mofo_step import largest_entries
from harness_optimizers.sgd import Sgd

from harness.errors import HarnessError

SETTINGS = {"learning_rate": 0.1}


def train_matrix(optimizer, steps=3, weight_decay=0.01):
    """Return the weights of a matrix after each step, with the gradients w + step."""
    weight = torch.nn.Parameter(torch.linspace(-1, 1, 12).reshape(3, 4))
    group = {"params": [weight], "lr": SETTINGS["learning_rate"], "weight_decay": weight_decay}
    torch_optimizer = optimizer.build([group], SETTINGS)
    result = []
    for step in range(steps):
        weight.grad = weight.detach() + step
        torch_optimizer.step()
        result.append(weight.detach().clone())
    return result


def test_lion_makes_the_step_of_its_paper():
    weight, momentum = torch.linspace(-1, 1, 12).reshape(3, 4), torch.zeros(3, 4)
    for step, trained in enumerate(train_matrix(Lion([0.9, 0.99]))):
        gradient = weight + step
        weight = weight - 0.1 * (torch.sign(0.9 * momentum + 0.1 * gradient) + 0.01 * weight)
        momentum = 0.99 * momentum + 0.01 * gradient
        assert torch.allclose(trained, weight, atol=1e-6)


def test_mofo_moves_the_weights_with_the_largest_momentum_as_adamw_would():
    weight, m, v = torch.linspace(-1, 1, 12).reshape(3, 4), torch.zeros(3, 4), torch.zeros(3, 4)
    for step, trained in enumerate(train_matrix(Mofo(0.25, [0.9, 0.99], 1e-8), steps=4)):
        gradient = weight + step
        m, v = 0.9 * m + 0.1 * gradient, 0.99 * v + 0.01 * gradient**2
        change = 0.1 * (m / (1 - 0.9 ** (step + 1)) / ((v / (1 - 0.99 ** (step + 1))).sqrt() + 1e-8) + 0.01 * weight)
        is_moved = trained != weight
        assert int(is_moved.sum()) == 3
        assert float(m.abs()[is_moved].min()) >= float(m.abs()[~is_moved].max())
        assert torch.allclose(trained[is_moved], (weight - change)[is_moved], atol=1e-6)
        weight = trained


def test_mofo_with_all_weights_is_adamw():
    of_mofo = train_matrix(Mofo(1.0, [0.9, 0.99], 1e-8), weight_decay=0.3)
    for one, two in zip(of_mofo, train_matrix(AdamW([0.9, 0.99], 1e-8), weight_decay=0.3), strict=True):
        assert torch.allclose(one, two, atol=1e-6)


def test_mofo_has_the_settings_of_each_group_and_moves_at_least_one_weight_of_a_tensor():
    slow, fast = torch.nn.Parameter(torch.ones(3)), torch.nn.Parameter(torch.ones(1))
    groups = [{"params": [slow], "lr": 0.1, "weight_decay": 0.0}, {"params": [fast], "lr": 0.2, "weight_decay": 0.5}]
    optimizer = Mofo(0.1, [0.9, 0.999], 1e-8).build(groups, SETTINGS)
    slow.grad, fast.grad = torch.tensor([1.0, -3.0, 2.0]), torch.tensor([5.0])
    optimizer.step()  # Adam's first step is the sign of the gradient
    assert torch.allclose(slow.detach(), torch.tensor([1.0, 1.1, 1.0]))
    assert torch.allclose(fast.detach(), torch.tensor([1 - 0.2 - 0.2 * 0.5]))


def test_exactly_the_fraction_is_chosen_among_equal_values():
    assert int(largest_entries(torch.ones(4, 5), 0.3).sum()) == 6
    assert largest_entries(torch.tensor([0.0, -9.0, 3.0]), 0.5).tolist() == [False, True, True]


def test_sgd_adds_the_weight_decay_to_the_gradient():
    weight, momentum = torch.linspace(-1, 1, 12).reshape(3, 4), torch.zeros(3, 4)
    for step, trained in enumerate(train_matrix(Sgd(0.5))):
        momentum = 0.5 * momentum + weight + step + 0.01 * weight
        weight = weight - 0.1 * momentum
        assert torch.allclose(trained, weight, atol=1e-6)


def test_adafactor_makes_the_first_step_of_its_paper():
    weight = torch.linspace(-1, 1, 12).reshape(3, 4)
    square = weight**2 + 1e-30  # in the first step, the running means are the first values
    estimate = torch.outer(square.mean(1), square.mean(0)) / square.mean()
    update = weight / estimate.sqrt()
    update = update / max(1.0, float(update.square().mean().sqrt()))
    (trained,) = train_matrix(Adafactor(0.8, 1.0), steps=1)
    assert torch.allclose(trained, weight - 0.1 * update - 0.1 * 0.01 * weight, atol=1e-5)


def test_adamw_is_torch_s_with_the_options_of_the_spec():
    weight = torch.nn.Parameter(torch.ones(2))
    optimizer = AdamW([0.8, 0.95], 1e-6).build([{"params": [weight], "lr": 0.1, "weight_decay": 0.3}], SETTINGS)
    assert type(optimizer) is torch.optim.AdamW
    (group,) = optimizer.param_groups
    assert (group["betas"], group["eps"], group["fused"]) == ((0.8, 0.95), 1e-6, True)
    assert (group["lr"], group["weight_decay"]) == (0.1, 0.3)


def test_adamw_8bit_without_its_package_is_an_error_with_the_command_to_install_it(monkeypatch):
    monkeypatch.setattr("harness_optimizers.adamw.find_spec", lambda name: None)
    with pytest.raises(
        HarnessError,
        match=r"optimizer adamw_8bit: bitsandbytes is not installed; pip install \"harness-sft\[quantization\]\"",
    ):
        AdamW8bit([0.9, 0.999], 1e-8).check_available()


@pytest.mark.parametrize(("optimizer", "other"), [(PagedAdamW, "adamw"), (PagedAdamW8bit, "adamw_8bit")])
def test_a_paged_optimizer_needs_a_gpu_and_names_the_other_one(optimizer, other):
    pytest.importorskip("bitsandbytes")
    groups = [{"params": [torch.nn.Parameter(torch.ones(2))], "lr": 0.1, "weight_decay": 0.0}]
    with pytest.raises(HarnessError, match=f'the model is not on a GPU; use "{other}"'):
        optimizer([0.9, 0.999], 1e-8).build(groups, {"learning_rate": 0.1})


def test_the_state_of_a_paged_optimizer_has_the_bytes_of_the_other_one():
    assert PagedAdamW.bytes_per_weight == AdamW.bytes_per_weight
    assert PagedAdamW8bit.bytes_per_weight == AdamW8bit.bytes_per_weight
