"""Every optimizer of the spec trains, and a resumed stage has the weights of an uninterrupted one, bit for bit."""

from __future__ import annotations

import copy
from importlib.util import find_spec

import pytest
import torch

from harness.errors import HarnessError
from harness.registry import discover_plugins
from harness.spec.component_options import fill_component_options
from harness.training.learning import Learning, layer_scales

OPTIMIZERS = ["adamw", "adafactor", "lion", "mofo", "muon", "sgd"]
if find_spec("bitsandbytes") is not None:
    OPTIMIZERS.append("adamw_8bit")


@pytest.mark.slow
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_resumed_stage_has_the_same_weights(name, make_stage, make_rows, fit, tiny_model, tmp_path):
    options = fill_component_options(discover_plugins(), "optimizers", name, {})
    data = make_stage(
        make_rows(8), batch_size=2, save_steps=2, optimizer={name: options}, weight_decay=0.1, learning_rate=1e-2
    )
    whole, result, _ = fit(data)
    assert any(not torch.equal(a, b) for a, b in zip(whole.parameters(), tiny_model.parameters(), strict=True))
    resumed, rest, _ = fit(data, model=copy.deepcopy(tiny_model), resume=tmp_path / "checkpoints" / "checkpoint-2")
    assert rest.loss == result.loss
    for (weight_name, weight), other in zip(whole.named_parameters(), resumed.parameters(), strict=True):
        assert torch.equal(weight, other), weight_name


def test_muon_trains_the_matrices_of_the_layers_only(tiny_model):
    registry = discover_plugins()
    options = fill_component_options(registry, "optimizers", "muon", {})
    muon = registry.create("optimizers", "muon", options)
    ((matrices),) = [group["params"] for group in muon.param_groups(tiny_model)]
    names = {name for name, weight in tiny_model.named_parameters() if any(weight is matrix for matrix in matrices)}
    assert "model.layers.0.mlp.up_proj.weight" in names
    assert not any("embed" in name or "norm" in name or "head" in name for name in names)


def test_the_step_of_muon_is_torch_s():
    torch.manual_seed(0)
    matrix, bias = torch.randn(4, 6), torch.randn(6)
    options = fill_component_options(discover_plugins(), "optimizers", "muon", {})
    muon = discover_plugins().create("optimizers", "muon", options)
    weights = [torch.nn.Parameter(value.clone()) for value in (matrix, bias)]
    groups = [
        {"params": [weights[0]], "lr": 0.1, "weight_decay": 0.2, "orthogonalize": True},
        {"params": [weights[1]], "lr": 0.1, "weight_decay": 0.0},
    ]
    optimizer = muon.build(groups, {"learning_rate": 0.1})
    expected = [torch.nn.Parameter(value.clone()) for value in (matrix, bias)]
    separate = [
        torch.optim.Muon([expected[0]], lr=0.1, weight_decay=0.2, momentum=0.95, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW([expected[1]], lr=0.1, weight_decay=0.0),
    ]
    for step in range(3):
        for weight in (*weights, *expected):
            weight.grad = weight.detach() * (step + 1)
        for one in (optimizer, *separate):
            one.step()
    for weight, other in zip(weights, expected, strict=True):
        torch.testing.assert_close(weight, other)


def test_warmup_steps_replace_the_ratio(make_stage):
    registry = discover_plugins()
    settings = {
        **make_stage().stage.train,
        "warmup_ratio": 0.5,
        "warmup_steps": 2,
        "scheduler": {"constant_with_warmup": {}},
    }
    assert [Learning.create(settings, 4, registry).factor(step) for step in range(3)] == [0.5, 1.0, 1.0]
    assert Learning.create({**settings, "warmup_steps": 9}, 4, registry).factor(3) == 1.0


def test_layer_decay_lowers_the_rate_of_lower_layers(tiny_model):
    scales = layer_scales(tiny_model, 0.5)
    count = tiny_model.config.num_hidden_layers
    by_name = {name: scales.get(weight, 1.0) for name, weight in tiny_model.named_parameters()}
    assert by_name["model.layers.0.mlp.up_proj.weight"] == 0.5**count
    assert by_name[f"model.layers.{count - 1}.mlp.up_proj.weight"] == 0.5
    assert by_name["model.norm.weight"] == 1.0
    assert by_name["model.embed_tokens.weight"] == 0.5 ** (count + 1)
    assert layer_scales(tiny_model, 1.0) == {}


def test_layer_decay_without_a_list_of_layers_is_refused(tiny_model):
    tiny_model.config.num_hidden_layers += 7
    with pytest.raises(HarnessError, match=r"train.layer_decay: the list of layers"):
        layer_scales(tiny_model, 0.5)


def test_the_optimizer_gets_the_decayed_rates(make_stage, tiny_model):
    settings = {**make_stage().stage.train, "layer_decay": 0.5}
    optimizer = Learning.create(settings, 4, discover_plugins()).build_optimizer(tiny_model, (), {})
    rates = {id(weight): group["lr"] for group in optimizer.param_groups for weight in group["params"]}
    assert rates[id(tiny_model.model.norm.weight)] == 1e-3
    assert rates[id(tiny_model.model.layers[-1].mlp.up_proj.weight)] == 5e-4
