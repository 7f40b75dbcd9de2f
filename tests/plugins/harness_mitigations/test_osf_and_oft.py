"""OSF and OFT: they begin at the base, preserve what they promise, and are saved in plain formats."""

from __future__ import annotations

import copy

import pytest
import torch
from harness_mitigations.oft import Oft
from harness_mitigations.osf import Osf

from harness.errors import HarnessError
from harness.model import save

IDS = torch.tensor([[5, 6, 7, 8]])


def create_osf(**options):
    return Osf(**({"preserve": 0.5, "target": "all-linear"} | options))


def create_oft(**options):
    return Oft(**({"block": 8, "exact": False, "dropout": 0.0, "target": "all-linear"} | options))


FACTORIES = {"osf": create_osf, "oft": create_oft}


@pytest.mark.parametrize("name", FACTORIES)
def test_adapter_begins_at_the_base_and_does_not_change_it(name, run_stages, make_rows, tiny_model):
    before = tiny_model.eval()(IDS).logits
    assert torch.allclose(
        FACTORIES[name]().prepare_model(copy.deepcopy(tiny_model), seed=0).eval()(IDS).logits, before, atol=1e-5
    )
    model, _ = run_stages(tiny_model, {name: FACTORIES[name]()}, [make_rows(8), make_rows(8, 1)])
    assert float((model.eval()(IDS).logits - before).detach().abs().max()) > 1e-2
    with save.adapter_disabled(model):
        assert torch.equal(model(IDS).logits, before)


@pytest.mark.parametrize("name", FACTORIES)
def test_saved_model_computes_the_same(name, run_stages, make_rows, tiny_model, reloaded):
    model, _ = run_stages(tiny_model, {name: FACTORIES[name]()}, [make_rows(8), make_rows(8, 1)])
    assert torch.allclose(reloaded(model)(IDS).logits, model.eval()(IDS).logits, atol=1e-5)


@pytest.mark.parametrize("name", FACTORIES)
def test_adapted_model_generates(name, tiny_model):
    model = FACTORIES[name]().prepare_model(tiny_model, seed=0).eval()
    assert model.generate(input_ids=IDS, max_new_tokens=2, do_sample=False).shape == (1, 6)


@pytest.mark.parametrize("name", FACTORIES)
def test_a_second_adapter_is_rejected(name, tiny_model):
    with pytest.raises(HarnessError, match=f"'{name}' and 'lora' each add an adapter"):
        FACTORIES[name]().check_compatible({"lora": create_osf()})
    with pytest.raises(HarnessError, match=f"mitigations.{name}: the model already has an adapter"):
        FACTORIES[name]().prepare_model(create_osf().prepare_model(tiny_model, seed=0), seed=0)


@pytest.mark.parametrize("name", FACTORIES)
def test_an_unknown_module_is_an_error(name, tiny_model):
    with pytest.raises(HarnessError, match=rf"mitigations\.{name}\.target: .*query_key_value"):
        FACTORIES[name](target="query_key_value").prepare_model(tiny_model, seed=0)


def test_oft_preserves_norms_of_neurons_and_angles_between_them(run_stages, make_rows, tiny_model):
    before = tiny_model.model.layers[0].mlp.up_proj.weight.detach().clone()
    model, _ = run_stages(tiny_model, {"oft": create_oft(exact=True)}, [make_rows(8)])
    layer = model.base_model.model.model.layers[0].mlp.up_proj
    after = model.merge_and_unload().model.layers[0].mlp.up_proj.weight.detach()
    assert layer is not None
    assert float((after - before).norm()) > 1e-2
    assert torch.allclose(after @ after.T, before @ before.T, atol=1e-5)


def test_blocks_that_do_not_divide_a_width_are_an_error(tiny_model):
    with pytest.raises(HarnessError, match=r"oft\.block: blocks of 12 do not divide the 32 inputs"):
        create_oft(block=12).prepare_model(tiny_model, seed=0)
    create_oft(block=64, target=["down_proj"]).prepare_model(tiny_model, seed=0)
