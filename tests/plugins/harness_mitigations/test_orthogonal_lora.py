"""O-LoRA: the penalty against autograd, zero for orthogonal rows; earlier stages do not change."""

from __future__ import annotations

import copy

import pytest
import torch
from harness_mitigations.orthogonal_lora import OrthogonalLora, add_overlap_gradient

from harness.errors import HarnessError
from harness.model import frozen_lora, save

IDS = torch.tensor([[5, 6, 7, 8]])


def create_olora(**options):
    defaults = {"rank": 3, "alpha": None, "dropout": 0.0, "target": "all-linear", "strength": 0.5}
    return OrthogonalLora(**(defaults | options))


def subspace_overlap(a, previous):
    """Return the sum of the absolute inner products of the rows of A with those of earlier ones."""
    return (previous @ a.T).abs().sum()


def changes(model):
    """Return the change of each layer's weight, frozen adapters included."""
    frozen = frozen_lora.frozen_lora(model)
    result = {}
    for name, layer in frozen_lora.lora_layers(model).items():
        result[name] = layer.get_delta_weight("default").detach().clone()
        if frozen:
            result[name] += frozen[name][1] @ frozen[name][0]
    return result


def test_orthogonal_rows_have_neither_overlap_nor_gradient():
    rows = torch.linalg.qr(torch.randn(8, 8, generator=torch.Generator().manual_seed(0)))[0]
    assert float(subspace_overlap(rows[:3], rows[3:])) < 1e-5
    eye, gradient = torch.eye(6), torch.zeros(2, 6)
    assert float(add_overlap_gradient(eye[:2], gradient, eye[2:], 0.5)) == 0
    assert torch.equal(gradient, torch.zeros(2, 6))


def test_penalty_is_the_sum_of_absolute_inner_products_times_the_strength():
    a, earlier = torch.tensor([[1.0, 2.0], [0.0, 1.0]]), torch.tensor([[3.0, -1.0]])
    assert float(add_overlap_gradient(a, torch.zeros(2, 2), earlier, 0.5)) == 0.5 * (abs(3 - 2) + abs(-1))


def test_overlap_gradient_equals_that_of_autograd():
    torch.manual_seed(0)
    a, earlier, before = torch.randn(3, 7, requires_grad=True), torch.randn(6, 7), torch.randn(3, 7)
    expected = torch.autograd.grad(0.7 * subspace_overlap(a, earlier), a)[0]
    gradient = before.clone()
    value = add_overlap_gradient(a, gradient, earlier, 0.7)
    assert torch.allclose(gradient - before, expected, atol=1e-5)
    assert torch.allclose(value, 0.7 * subspace_overlap(a, earlier))


def test_each_stage_begins_with_a_new_adapter_at_the_end_of_the_last(run_stages, make_rows, tiny_model):
    seen = {}

    def watch(number, model):
        seen[number] = (model.eval()(IDS).logits, changes(model), factors(model))

    stages = [make_rows(8, seed) for seed in range(3)]
    run_stages(tiny_model, {"orthogonal_lora": create_olora()}, stages, watch=watch)
    for end, begin in ((-1, 2), (-2, 3)):
        assert torch.allclose(seen[begin][0], seen[end][0], atol=1e-5)
        for name, change in seen[end][1].items():
            assert torch.allclose(seen[begin][1][name], change, atol=1e-6)
            assert not seen[begin][2][name][1].any()  # the new B
            assert float((seen[begin][2][name][0] - seen[end][2][name][0]).abs().max()) > 1e-2  # the new A
    assert float((seen[-3][0] - seen[3][0]).detach().abs().max()) > 1e-3


def factors(model):
    return {
        name: tuple(getattr(layer, f"lora_{one}")["default"].weight.detach().clone() for one in "AB")
        for name, layer in frozen_lora.lora_layers(model).items()
    }


def test_changes_of_earlier_stages_are_frozen(run_stages, make_rows, tiny_model):
    frozen = {}
    run_stages(
        tiny_model,
        {"orthogonal_lora": create_olora()},
        [make_rows(8), make_rows(12, 1)],
        watch=lambda number, model: frozen.update(
            {number: {n: (a.clone(), b.clone()) for n, (a, b) in frozen_lora.frozen_lora(model).items()}}
        ),
    )
    assert frozen[1] == frozen[-1] == {}
    for name, (a, b) in frozen[2].items():
        assert torch.equal(a, frozen[-2][name][0])
        assert torch.equal(b, frozen[-2][name][1])


@pytest.mark.slow
def test_a_high_strength_makes_the_new_adapter_orthogonal(run_stages, make_rows, tiny_model):
    overlaps = {}
    for strength in (0.0, 20.0):
        mitigation = create_olora(strength=strength)
        stages = [make_rows(8), make_rows(80, 1)]
        model, (_, log) = run_stages(
            copy.deepcopy(tiny_model), {"orthogonal_lora": mitigation}, stages, learning_rate=3e-3
        )
        overlaps[strength] = sum(
            float(subspace_overlap(layer.lora_A["default"].weight.detach(), mitigation.previous_a[name]))
            for name, layer in frozen_lora.lora_layers(model).items()
        )
        assert ("penalty/orthogonal_lora" in log[0]) is (strength > 0)
    assert overlaps[20.0] < 0.3 * overlaps[0.0]


def test_logged_penalty_does_not_depend_on_accumulation(run_stages, make_rows, tiny_model):
    logs = []
    for batch, accumulation in ((8, 1), (1, 8)):
        mitigation = create_olora(strength=0.5)
        _, (_, log) = run_stages(
            copy.deepcopy(tiny_model),
            {"orthogonal_lora": mitigation},
            [make_rows(8), make_rows(8, 1)],
            batch_size=batch,
            accumulation=accumulation,
        )
        logs.append(log[0]["penalty/orthogonal_lora"])
    assert logs[0] > 0
    assert logs[0] == pytest.approx(logs[1], rel=1e-4)


def test_three_stages_are_saved_as_one_adapter_of_the_unchanged_base(run_stages, make_rows, tiny_model, reloaded):
    base = tiny_model.eval()(IDS).logits
    stages = [make_rows(8, seed) for seed in range(3)]
    model, _ = run_stages(tiny_model, {"orthogonal_lora": create_olora()}, stages)
    with save.adapter_disabled(model):
        assert torch.equal(model.eval()(IDS).logits, base)
    loaded = reloaded(model)
    assert loaded.peft_config["default"].r == 9
    assert torch.allclose(loaded(IDS).logits, model.eval()(IDS).logits, atol=1e-5)


def test_state_contains_the_earlier_directions(run_stages, make_rows, tiny_model):
    first, second = create_olora(), create_olora()
    run_stages(tiny_model, {"orthogonal_lora": first}, [make_rows(4), make_rows(4, 1)])
    second.load_state_dict(first.state_dict())
    assert second.state_dict()["stages"] == 2
    assert all(torch.equal(a, second.previous_a[name]) for name, a in first.previous_a.items())


def test_a_second_adapter_is_rejected():
    with pytest.raises(HarnessError, match="'orthogonal_lora' and 'lora' each add an adapter"):
        create_olora().check_compatible({"lora": create_olora()})
