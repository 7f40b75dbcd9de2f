"""WiSE-FT: alpha 0 and 1 give both ends bit for bit, other values interpolate, with and without an adapter."""

from __future__ import annotations

import copy

import pytest
import torch
from harness_mitigations.lora import Lora
from harness_mitigations.orthogonal_lora import OrthogonalLora
from harness_mitigations.wise_ft import WiseFt, interpolate_weights

from harness.errors import HarnessError
from harness.model import frozen_lora, save

IDS = torch.tensor([[5, 6, 7, 8, 9]])
SWEEP = (0.0, 0.25, 0.7, 1.0)


def create_lora(**options):
    defaults = {"rank": 3, "alpha": None, "dropout": 0.0, "target": "all-linear", "rslora": False, "dora": False}
    return Lora(
        **(defaults | {"start": "zero", "source": None, "samples": 8, "loraplus_ratio": 1, "parameters": ()} | options)
    )


def create_adapter(kind):
    if kind == "orthogonal_lora":
        return {kind: OrthogonalLora(rank=3, alpha=None, dropout=0.0, target="all-linear", strength=0.5)}
    return {} if kind == "none" else {"lora": create_lora(start="pissa" if kind == "pissa" else "zero")}


KINDS = ["none", "lora", "pissa", "orthogonal_lora"]


def merged_weights(model, base):
    """Return the base weights with the changes of all adapters added, by name, float64."""
    if not save.is_peft_model(model):
        return {name: weight.detach().double().clone() for name, weight in model.named_parameters()}
    merged = {name: weight.detach().double().clone() for name, weight in base.named_parameters()}
    frozen = frozen_lora.frozen_lora(model)
    for name, layer in frozen_lora.lora_layers(model).items():
        key = name.removeprefix("base_model.model.") + ".weight"
        a, b = (getattr(layer, f"lora_{factor}")["default"].weight.detach().double() for factor in "AB")
        merged[key] += layer.scaling["default"] * b @ a
        if frozen:
            merged[key] += frozen[name][1].double() @ frozen[name][0].double()
    return merged


def logits(model):
    with torch.no_grad():
        return model.eval()(IDS).logits


def test_interpolation_at_zero_and_one_gives_the_ends_bit_for_bit():
    torch.manual_seed(0)
    start, end = 1e4 * torch.randn(50), 1e-4 * torch.randn(50)
    assert torch.equal(interpolate_weights(start, end, 0.0), start)
    assert torch.equal(interpolate_weights(start, end, 1.0), end)
    assert torch.allclose(interpolate_weights(start, end, 0.3), 0.7 * start + 0.3 * end, rtol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_variants_interpolate_the_merged_weights_in_two_stages(kind, run_stages, make_rows, tiny_model):
    base, seen = copy.deepcopy(tiny_model), {}
    wise = WiseFt(alpha=0.5, alphas=SWEEP)

    def watch(number, model):
        if number > 0:
            seen["start"] = (merged_weights(model, base), logits(model))
            return
        result = (merged_weights(model, base), logits(model))
        variants = {name: (merged_weights(model, base), logits(model)) for name in wise.variants(model)}
        assert list(variants) == ["alpha=0", "alpha=0.25", "alpha=0.7", "alpha=1"]
        after = (merged_weights(model, base), logits(model))
        assert torch.equal(after[1], result[1])
        start, end = seen["start"], variants["alpha=1"]
        assert float((end[1] - start[1]).abs().max()) > 1e-3
        assert torch.equal(variants["alpha=0"][1], start[1])
        for name, weight in start[0].items():
            assert torch.equal(variants["alpha=0"][0][name], weight), name
            for alpha, found in ((0.25, variants["alpha=0.25"]), (0.7, variants["alpha=0.7"]), (0.5, result)):
                expected = (1 - alpha) * weight + alpha * end[0][name]
                assert torch.allclose(found[0][name], expected, atol=1e-6), (alpha, name)
        seen[number] = True

    given = create_adapter(kind) | {"wise_ft": wise}
    run_stages(tiny_model, given, [make_rows(12), make_rows(12, 1)], watch=watch)
    assert seen[-1]
    assert seen[-2]


@pytest.mark.parametrize("kind", KINDS)
def test_alpha_one_equals_plain_training_bit_for_bit(kind, run_stages, make_rows, tiny_model):
    stages = [make_rows(8), make_rows(8, 1)]
    plain, _ = run_stages(copy.deepcopy(tiny_model), create_adapter(kind), stages)
    wise, _ = run_stages(
        copy.deepcopy(tiny_model), create_adapter(kind) | {"wise_ft": WiseFt(alpha=1.0, alphas=())}, stages
    )
    for one, two in zip(plain.parameters(), wise.parameters(), strict=True):
        assert torch.equal(one, two)


@pytest.mark.parametrize("kind", KINDS)
def test_alpha_zero_gives_the_base_bit_for_bit(kind, run_stages, make_rows, tiny_model):
    before = logits(tiny_model)
    given = create_adapter(kind) | {"wise_ft": WiseFt(alpha=0.0, alphas=())}
    model, _ = run_stages(tiny_model, given, [make_rows(8), make_rows(8, 1)])
    if kind == "pissa":  # the base up to the rounding of B0 A0 - B0 A0
        assert torch.allclose(logits(model), before, atol=1e-5)
    else:
        assert torch.equal(logits(model), before)


@pytest.mark.parametrize("kind", KINDS)
def test_a_closed_sweep_restores_the_result(kind, run_stages, make_rows, tiny_model):
    wise = WiseFt(alpha=0.5, alphas=SWEEP)
    model, _ = run_stages(tiny_model, create_adapter(kind) | {"wise_ft": wise}, [make_rows(8), make_rows(8, 1)])
    before = logits(model)
    sweep = wise.variants(model)
    next(sweep)
    assert not torch.equal(logits(model), before)
    sweep.close()
    assert torch.equal(logits(model), before)
    assert {weight.requires_grad for name, weight in model.named_parameters() if "kept" in name} <= {False}


@pytest.mark.parametrize("kind", KINDS)
def test_saved_result_computes_the_same(kind, run_stages, make_rows, tiny_model, reloaded):
    given = create_adapter(kind) | {"wise_ft": WiseFt(alpha=0.4, alphas=())}
    model, _ = run_stages(tiny_model, given, [make_rows(8), make_rows(8, 1)])
    assert torch.allclose(reloaded(model)(IDS).logits, logits(model), atol=1e-5)


def test_state_contains_the_start_of_the_stage(run_stages, make_rows, tiny_model):
    first, restored = WiseFt(alpha=0.5, alphas=()), WiseFt(alpha=0.5, alphas=())
    model, _ = run_stages(tiny_model, {"wise_ft": first}, [make_rows(4)])
    restored.load_state_dict(first.state_dict())
    restored_model = copy.deepcopy(model)
    for mitigation, each_model in ((first, model), (restored, restored_model)):
        mitigation.on_stage_end(None, each_model, ())
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), restored_model.parameters(), strict=True))


def test_no_variant_before_the_first_stage(tiny_model):
    assert list(WiseFt(alpha=0.5, alphas=SWEEP).variants(tiny_model)) == []


@pytest.mark.parametrize("name", ["oft", "osf"])
def test_adapters_that_cannot_be_scaled_are_rejected(name):
    with pytest.raises(HarnessError, match=f"a scaled change of '{name}' is not a change"):
        WiseFt(alpha=0.5, alphas=()).check_compatible({name: create_lora()})


def test_dora_is_rejected_and_lora_is_not():
    with pytest.raises(HarnessError, match="DoRA divides by the norm"):
        WiseFt(alpha=0.5, alphas=()).check_compatible({"lora": create_lora(dora=True)})
    WiseFt(alpha=0.5, alphas=()).check_compatible({"lora": create_lora(), "kl": create_lora()})
