"""Freezing: exactly the named weights are frozen and do not change; invalid options are errors."""

from __future__ import annotations

import copy
from collections import Counter

import pytest
import torch
from harness_mitigations.freeze import Freeze, draw_share
from harness_mitigations.l2sp import L2Sp

from harness.errors import HarnessError
from harness.types import Stage, StageSource

STAGE = Stage("stage", (StageSource("source", "domain"),))


def create_freeze(**options):
    return Freeze(**({"embeddings": False, "layers": 0, "patterns": [], "share": 0.0} | options))


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


@pytest.mark.parametrize("share", [0.5, 0.25, 0.9])
def test_each_layer_freezes_its_share_and_the_total_is_rounded(share):
    counts = [3, 4, 3, 3, 4, 3]
    frozen = draw_share(counts, share, seed=1, kind="mlp")
    assert sum(map(len, frozen)) == round(share * sum(counts))
    for count, indices in zip(counts, frozen, strict=True):
        assert abs(len(indices) - share * count) < 1
        assert len(set(indices)) == len(indices)
        assert set(indices) <= set(range(count))


def test_every_weight_is_frozen_as_often_as_the_share_says():
    times = Counter(
        index for seed in range(400) for indices in draw_share([3, 3], 0.5, seed=seed, kind="mlp") for index in indices
    )
    assert set(times) == {0, 1, 2}
    for index in times:  # binomial with n = 800 and p = 0.5: standard deviation 14
        assert abs(times[index] - 400) < 70


def test_half_of_each_kind_is_frozen(tiny_model):
    names = frozen_names(create_freeze(share=0.5).prepare_model(tiny_model, seed=0))
    by_kind = Counter(name.split(".")[3] for name in names if "proj" in name)
    assert by_kind == {"self_attn": 4, "mlp": 3}  # 2 of 4 in each layer; 1 of 3 in one layer, 2 of 3 in the other
    for layer in "01":
        inside = [name for name in names if name.startswith(f"model.layers.{layer}.")]
        assert sum("self_attn" in name for name in inside) == 2
        assert sum("mlp" in name for name in inside) in (1, 2)
        assert sum("layernorm" in name for name in inside) == 1
    assert "model.embed_tokens.weight" not in names


def test_each_stage_draws_again_and_a_seed_repeats_its_draw(tiny_model):
    freeze = create_freeze(embeddings=True, layers=1, share=0.5)
    model = freeze.prepare_model(tiny_model, seed=1)
    draws = {1: frozen_names(model)}
    for seed in (1, 2, 3, 4):
        freeze.on_stage_start(STAGE, model, {}, seed=seed)
        assert draws.setdefault(seed, frozen_names(model)) == frozen_names(model)
    assert len({frozenset(draw) for draw in draws.values()}) > 1
    create_freeze(embeddings=True, layers=1, share=0.5).on_stage_start(STAGE, model, {}, seed=1)
    assert frozen_names(model) == draws[1]
    always = {name for name, _ in model.named_parameters() if name.startswith(("model.embed", "model.layers.0."))}
    assert all(always < draw for draw in draws.values())


def test_weights_that_a_later_stage_trains_become_float32(tiny_model):
    freeze = create_freeze(share=0.5)
    model = freeze.prepare_model(tiny_model.to(torch.bfloat16), seed=1)
    freeze.on_stage_start(STAGE, model, {}, seed=2)
    dtypes = {weight.requires_grad: weight.dtype for weight in model.parameters()}
    assert dtypes == {True: torch.float32, False: torch.bfloat16}


def test_exactly_the_drawn_weights_keep_their_values_in_a_stage(run_stages, make_rows, tiny_model):
    at_start = {}

    def watch(number, model):
        if number > 0:
            at_start.update({name: (weight.requires_grad, weight.clone()) for name, weight in model.named_parameters()})
            return
        for name, weight in model.named_parameters():
            is_trained, before = at_start[name]
            assert torch.equal(weight, before) is not is_trained, name

    run_stages(
        tiny_model, {"freeze": create_freeze(share=0.5)}, [make_rows(8), make_rows(8, 1)], watch=watch, weight_decay=0.1
    )


def test_the_base_of_kl_keeps_weights_that_a_later_stage_trains(tiny_model):
    from harness_mitigations import base_model

    ids = torch.tensor([[5, 6, 7]])
    expected = tiny_model.eval()(ids).logits
    model = create_freeze(share=0.5).prepare_model(tiny_model, seed=0)
    base_model.snapshot_base(model)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if ".layers." in name:
                weight.zero_()
    with base_model.frozen_base_model(model) as base:
        assert torch.equal(base(ids).logits, expected)


def test_an_anchor_is_rejected_with_a_share():
    base, stage = (L2Sp(1.0, "gradient", anchor, "device") for anchor in ("base", "stage"))
    with pytest.raises(HarnessError, match="'l2sp' anchors the weights that the first stage trains"):
        create_freeze(share=0.5).check_compatible({"l2sp": base})
    create_freeze(share=0.5).check_compatible({"l2sp": stage})
    create_freeze(embeddings=True).check_compatible({"l2sp": base})
