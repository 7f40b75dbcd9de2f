"""Freezing: exactly the named weights are frozen and do not change; invalid options are errors."""

from __future__ import annotations

import copy
from collections import Counter

import pytest
import torch
from harness_mitigations.freeze import Freeze, draw_share
from harness_mitigations.important_columns import most_important_columns, squared_input_norms
from harness_mitigations.l2sp import L2Sp
from harness_mitigations.linear_layers import find_linear_layers

from harness.errors import HarnessError
from harness.types import Stage, StageSource

STAGE = Stage("stage", (StageSource("source", "domain"),))


def create_freeze(**options):
    defaults = {"embeddings": False, "layers": 0, "patterns": [], "trainable": [], "share": 0.0}
    return Freeze(**(defaults | {"columns": 0.0, "source": None, "samples": 128} | options))


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


@pytest.mark.parametrize("adapter", ["lora", "orthogonal_lora", "merged_lora", "osf", "oft"])
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


def test_the_most_important_columns_have_the_largest_product_of_norms():
    weight = torch.tensor([[3.0, 0.1, 1.0, 2.0], [4.0, 0.0, 1.0, 0.0]])  # norms 5, 0.1, 1.41, 2
    norms = torch.tensor([1.0, 100.0, 4.0, 2.0])  # products 5, 10, 5.66, 4
    assert most_important_columns(weight, norms.square(), 0.5).tolist() == [1, 2]
    assert most_important_columns(weight.T, norms.square(), 0.5, dimension=0).tolist() == [1, 2]
    assert most_important_columns(weight, norms.square(), 0.6).tolist() == [0, 1, 2]


def test_norms_of_inputs_are_those_of_each_row_alone(tiny_model, make_rows):
    rows = make_rows(11)
    layers = find_linear_layers(tiny_model)
    norms = squared_input_norms(tiny_model, layers, rows)
    assert norms.keys() == layers.keys()
    name = "model.layers.1.mlp.down_proj"
    inputs = []
    handle = layers[name].register_forward_pre_hook(lambda module, given: inputs.append(given[0][0]))
    with torch.no_grad():
        for row in rows:
            tiny_model.eval()(torch.tensor([row.input_ids]))
    handle.remove()
    assert torch.allclose(norms[name].float(), torch.cat(inputs).square().sum(0), rtol=1e-4)


@pytest.mark.parametrize("optimizer", ["adamw", "muon", "mofo"])
def test_frozen_columns_are_equal_bit_for_bit_after_training_with_weight_decay(
    optimizer, run_stages, make_rows, tiny_model
):
    from harness.registry import discover_plugins
    from harness.spec.component_options import fill_component_options

    freeze = create_freeze(columns=0.5, source="general", samples=4)
    before = {name: weight.clone() for name, weight in tiny_model.named_parameters()}
    options = fill_component_options(discover_plugins(), "optimizers", optimizer, {})
    model, _ = run_stages(
        tiny_model,
        {"freeze": freeze},
        [make_rows(12), make_rows(8, 1)],
        {"general": make_rows(6, 5)},
        weight_decay=0.5,
        optimizer={optimizer: options},
    )
    weights = dict(model.named_parameters())
    assert set(freeze.frozen_columns) == {f"{name}.weight" for name in find_linear_layers(model)}
    for name, columns in freeze.frozen_columns.items():
        is_frozen = torch.zeros(weights[name].shape[1], dtype=torch.bool)
        is_frozen[columns] = True
        assert int(is_frozen.sum()) == -(-weights[name].shape[1] // 2)
        changed = weights[name] != before[name]
        assert not changed[:, is_frozen].any(), name
        assert changed[:, ~is_frozen].any(), name
    assert not torch.equal(weights["model.embed_tokens.weight"], before["model.embed_tokens.weight"])


def test_the_norm_of_the_gradient_is_that_of_what_is_trained(run_stages, make_rows, tiny_model):
    norms = []
    for columns in (0.0, 0.9):
        freeze = create_freeze(patterns=["model.norm.weight"], columns=columns, source="general")
        sources = {"general": make_rows(6, 5)}
        _, (log,) = run_stages(copy.deepcopy(tiny_model), {"freeze": freeze}, [make_rows(4)], sources)
        norms.append(log[0]["grad_norm"])
    assert norms[1] < norms[0]


def test_columns_are_measured_once_and_restored(tiny_model, make_rows):
    first = create_freeze(columns=0.25, source="general", samples=3)
    model = first.prepare_model(tiny_model, seed=0)
    first.on_stage_start(STAGE, model, {"general": make_rows(9)}, seed=0)
    columns = {name: tensor.clone() for name, tensor in first.frozen_columns.items()}
    restored = create_freeze(columns=0.25, source="general", samples=3)
    restored.load_state_dict(first.state_dict())
    for freeze in (first, restored):
        freeze.on_stage_start(STAGE, model, {"general": make_rows(9, 4)}, seed=1)
        assert all(torch.equal(freeze.frozen_columns[name], columns[name]) for name in columns)


def test_columns_without_rows_are_an_error(tiny_model):
    with pytest.raises(HarnessError, match="no source to measure them on"):
        create_freeze(columns=0.5).check_compatible({})
    with pytest.raises(HarnessError, match="'general' has no row to measure the columns on"):
        create_freeze(columns=0.5, source="general").on_stage_start(STAGE, tiny_model, {}, seed=0)


def test_a_source_without_columns_is_not_ignored():
    with pytest.raises(HarnessError, match=r"no column is to be frozen; set mitigations\.freeze\.columns"):
        create_freeze(source="general").check_compatible({})


def test_only_weights_whose_names_begin_with_a_match_are_trained(tiny_model):
    expressions = [r"model\.norm", r"model\.layers\.[1-9]\.mlp\."]
    names = frozen_names(create_freeze(trainable=expressions).prepare_model(tiny_model, seed=0))
    trained = {name for name, _ in tiny_model.named_parameters()} - names
    mlp = {f"model.layers.1.mlp.{part}_proj.weight" for part in ("gate", "up", "down")}
    assert trained == {"model.norm.weight"} | mlp


def test_what_another_option_freezes_is_not_trained(tiny_model):
    freeze = create_freeze(trainable=[r"model\.layers"], layers=1)
    trained = {name for name, _ in tiny_model.named_parameters()} - frozen_names(
        freeze.prepare_model(tiny_model, seed=0)
    )
    assert trained == {name for name, _ in tiny_model.named_parameters() if name.startswith("model.layers.1.")}


def test_a_tied_weight_is_trained_by_each_of_its_names(tokenizer):
    from support.architectures import build_architecture

    model = create_freeze(trainable=["lm_head"]).prepare_model(build_architecture("llama-tied", tokenizer), seed=0)
    assert model.get_input_embeddings().weight.requires_grad


@pytest.mark.parametrize(
    ("expression", "what"),
    [("layers", "no weight's name begins with a match of 'layers'"), ("(", "'\\(' is not a regular expression")],
)
def test_an_expression_without_a_match_is_an_error(expression, what, tiny_model):
    with pytest.raises(HarnessError, match=rf"^mitigations.freeze.trainable: {what}"):
        create_freeze(trainable=[r"model\.", expression]).prepare_model(tiny_model, seed=0)
