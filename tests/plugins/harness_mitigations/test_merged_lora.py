"""SLAO: the first stage is LoRA; A begins orthonormal, B is merged by 1 / sqrt(stage); the state is complete."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from harness_mitigations.ema import Ema
from harness_mitigations.lora import Lora
from harness_mitigations.merged_lora import MergedLora, merge_factor, orthonormal_rows
from harness_mitigations.wise_ft import WiseFt

from harness.errors import HarnessError
from harness.model import frozen_lora, save

IDS = torch.tensor([[5, 6, 7, 8]])


def create(**options):
    defaults = {"rank": 3, "alpha": None, "dropout": 0.0, "target": "all-linear"}
    return MergedLora(**(defaults | options))


def factors(model):
    return {
        name: tuple(getattr(layer, f"lora_{one}")["default"].weight.detach().clone() for one in "AB")
        for name, layer in frozen_lora.lora_layers(model).items()
    }


def test_the_first_rows_are_those_of_gram_and_schmidt():
    rows = orthonormal_rows(torch.tensor([[3.0, 4.0, 0.0], [6.0, 8.0, -5.0]]))
    assert torch.allclose(rows, torch.tensor([[0.6, 0.8, 0.0], [0.0, 0.0, -1.0]]), atol=1e-6)


def test_orthonormal_rows_span_the_rows_of_a():
    a = torch.randn(4, 9, generator=torch.Generator().manual_seed(0))
    rows = orthonormal_rows(a)
    assert torch.allclose(rows @ rows.T, torch.eye(4), atol=1e-5)
    assert torch.allclose(a @ rows.T @ rows, a, atol=1e-5)


def test_a_stage_counts_by_one_over_the_root_of_its_number():
    merged, trained = torch.tensor([1.0]), torch.tensor([5.0])
    assert float(merge_factor(merged, trained, 1)) == 5
    assert float(merge_factor(merged, trained, 4)) == 3


def test_one_stage_is_lora(run_stages, make_rows, tiny_model):
    def set_a(number, model):  # which the name of a mitigation seeds
        for layer in frozen_lora.lora_layers(model).values() if number == 1 else ():
            weight = layer.lora_A["default"].weight
            weight.data = torch.randn(weight.shape, generator=torch.Generator().manual_seed(0)) * 0.1

    plain = Lora(3, None, 0.0, "all-linear", False, False, "zero", None, 1, 1, ())
    ends = []
    for name, mitigation in (("merged_lora", create()), ("lora", plain)):
        model, _ = run_stages(copy.deepcopy(tiny_model), {name: mitigation}, [make_rows(8)], watch=set_a)
        ends.append(factors(model))
    for layer, (a, b) in ends[0].items():
        assert b.any()
        assert torch.equal(a, ends[1][layer][0])
        assert torch.equal(b, ends[1][layer][1])


def test_stages_begin_and_end_as_the_formula_says(run_stages, make_rows, tiny_model):
    mitigation, seen, trained = create(), {}, {}

    def watch(number, model):
        seen[number] = factors(model)
        if number < 0:
            trained[-number] = {name: b.clone() for name, b in mitigation.trained_b.items()}

    model, _ = run_stages(
        tiny_model, {"merged_lora": mitigation}, [make_rows(8, seed) for seed in range(3)], watch=watch
    )
    for name in seen[1]:
        assert torch.equal(seen[-1][name][1], trained[1][name])  # the first stage is not merged with anything
        for stage in (2, 3):
            assert torch.allclose(seen[stage][name][0], orthonormal_rows(seen[1 - stage][name][0]), atol=1e-6)
            assert torch.equal(seen[stage][name][1], trained[stage - 1][name])
            assert not torch.equal(trained[stage][name], trained[stage - 1][name])
            expected = seen[1 - stage][name][1] * (1 - 1 / math.sqrt(stage)) + trained[stage][name] / math.sqrt(stage)
            assert torch.allclose(seen[-stage][name][1], expected, atol=1e-6)
    assert frozen_lora.frozen_lora(model) == {}


def test_the_adapter_is_saved_with_its_own_rank_on_the_unchanged_base(run_stages, make_rows, tiny_model, reloaded):
    base = tiny_model.eval()(IDS).logits
    model, _ = run_stages(tiny_model, {"merged_lora": create()}, [make_rows(8, seed) for seed in range(3)])
    with save.adapter_disabled(model):
        assert torch.equal(model.eval()(IDS).logits, base)
    loaded = reloaded(model)
    assert loaded.peft_config["default"].r == 3
    assert torch.allclose(loaded(IDS).logits, model.eval()(IDS).logits, atol=1e-5)


def test_the_state_is_restored(run_stages, make_rows, tiny_model):
    first, second = create(), create()
    run_stages(tiny_model, {"merged_lora": first}, [make_rows(4), make_rows(4, 1)])
    second.load_state_dict(first.state_dict())
    assert second.stages_ended == 2
    for name, b in first.trained_b.items():
        assert torch.equal(b, second.trained_b[name])
        assert torch.equal(first.merged_b[name], second.merged_b[name])


@pytest.mark.parametrize("average", [Ema(0.5, None), WiseFt(0.5, [])], ids=["ema", "wise_ft"])
def test_averages_after_the_stage_are_rejected(average):
    with pytest.raises(HarnessError, match="replaces the weights after a stage"):
        average.check_compatible({"merged_lora": create()})


def test_a_rank_above_the_inputs_of_a_layer_is_rejected(tiny_model):
    with pytest.raises(HarnessError, match="rank 4096 is higher than the"):
        create(rank=4096).prepare_model(tiny_model, seed=0)
