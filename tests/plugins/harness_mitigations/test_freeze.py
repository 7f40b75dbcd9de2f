"""Freezing: exactly the named weights are frozen and do not change; invalid options are errors."""

from __future__ import annotations

import copy

import pytest
import torch
from harness_mitigations.freeze import Freeze

from harness.errors import HarnessError


def create_freeze(**options):
    return Freeze(**({"embeddings": False, "layers": 0, "patterns": []} | options))


def frozen_names(model):
    return {name for name, weight in model.named_parameters() if not weight.requires_grad}


def test_embeddings_freezes_the_input_embeddings(tiny_model):
    assert frozen_names(create_freeze(embeddings=True).prepare_model(tiny_model, seed=0)) == {
        "model.embed_tokens.weight"
    }


def test_all_weights_of_the_lowest_layers_are_frozen(tiny_model):
    expected = {name for name, _ in tiny_model.named_parameters() if name.startswith("model.layers.0.")}
    assert frozen_names(create_freeze(layers=1).prepare_model(tiny_model, seed=0)) == expected != set()


def test_a_pattern_matches_full_names(tiny_model):
    names = frozen_names(create_freeze(patterns=["*.mlp.*", "model.norm.weight"]).prepare_model(tiny_model, seed=0))
    assert names == {name for name, _ in tiny_model.named_parameters() if ".mlp." in name} | {"model.norm.weight"}


def test_frozen_weights_do_not_change_and_all_others_do(run_stages, make_rows, tiny_model):
    before = {name: weight.clone() for name, weight in tiny_model.named_parameters()}
    model, _ = run_stages(
        tiny_model, {"freeze": create_freeze(embeddings=True, layers=1)}, [make_rows(8), make_rows(8, 1)]
    )
    for name, weight in model.named_parameters():
        stays = name.startswith(("model.embed_tokens", "model.layers.0."))
        assert torch.equal(weight, before[name]) is stays, name


def test_saved_model_loads_as_a_plain_model(run_stages, make_rows, tiny_model, reloaded):
    model, _ = run_stages(copy.deepcopy(tiny_model), {"freeze": create_freeze(layers=1)}, [make_rows(4)])
    ids = torch.tensor([[5, 6, 7]])
    assert torch.allclose(reloaded(model)(ids).logits, model.eval()(ids).logits, atol=1e-6)


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({}, "it names nothing to freeze"),
        ({"layers": 3}, "the model has 2 layers, not 3"),
        ({"patterns": ["mlp"]}, "no weight's name matches 'mlp'"),
        ({"patterns": ["*"]}, "it leaves no weight to train"),
    ],
)
def test_invalid_options_are_errors(options, what, tiny_model):
    with pytest.raises(HarnessError, match=what):
        create_freeze(**options).prepare_model(tiny_model, seed=0)


def test_a_model_whose_layers_are_not_found_is_an_error(tiny_model):
    tiny_model.config.num_hidden_layers = 5
    with pytest.raises(HarnessError, match="the list of layers of a llama model was not found"):
        create_freeze(layers=1).prepare_model(tiny_model, seed=0)


@pytest.mark.parametrize("adapter", ["lora", "orthogonal_lora", "osf", "oft"])
def test_an_adapter_is_rejected(adapter):
    with pytest.raises(HarnessError, match=f"with '{adapter}' only the adapter is trained"):
        create_freeze(layers=1).check_compatible({adapter: create_freeze()})
    create_freeze(layers=1).check_compatible({"ewc": create_freeze()})
