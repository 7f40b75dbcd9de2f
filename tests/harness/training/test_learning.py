"""The optimizer of a stage: its groups of weights, the verbs around its step, and its state in checkpoints."""

from __future__ import annotations

import copy

import pytest
import torch

from harness.errors import HarnessError
from harness.interfaces.mitigation import Mitigation
from harness.registry import discover_plugins
from harness.training.checkpoint import complete_checkpoints
from harness.training.learning import Learning
from harness.training.stage_trainer import StageTrainer
from harness.training.train_stage import train_stage

OPTIMIZERS = {
    "adamw": {"betas": [0.8, 0.95], "eps": 1e-8},
    "adafactor": {"decay_rate": 0.8, "clip_threshold": 1.0},
    "lion": {"betas": [0.9, 0.99]},
    "sgd": {"momentum": 0.9},
}
WSD = {"wsd": {"decay_ratio": 0.5, "shape": "sqrt", "final": 0.1}}


class Scaled(Mitigation):
    """Gives the weights of some names settings of their own."""

    def __init__(self, part, **settings):
        self.part, self.settings = part, settings

    def param_groups(self, model):
        return [{"params": [w for n, w in model.named_parameters() if self.part in n], **self.settings}]


@pytest.fixture
def build_groups(tiny_model, make_stage):
    """(mitigations by name) -> (weights' name -> settings, the groups of the optimizer)."""

    def build(**mitigations):
        settings = make_stage(weight_decay=0.1).stage.train
        decayed = [name for name, _ in tiny_model.named_parameters() if "norm" not in name]
        learning = Learning.create(settings, 10, discover_plugins())
        groups = learning.build_optimizer(tiny_model, decayed, mitigations).param_groups
        names = {weight: name for name, weight in tiny_model.named_parameters()}
        return {
            names[weight]: (group["lr"], group["weight_decay"]) for group in groups for weight in group["params"]
        }, groups

    return build


def test_norms_have_no_weight_decay(build_groups):
    by_name, groups = build_groups()
    assert len(groups) == 2
    assert by_name["model.norm.weight"] == (1e-3, 0.0)
    assert by_name["model.layers.0.mlp.up_proj.weight"] == (1e-3, 0.1)


def test_settings_of_mitigations_multiply_the_rate_and_replace_other_keys(build_groups):
    by_name, groups = build_groups(
        a=Scaled("layers.0", lr_scale=0.5), b=Scaled("mlp", lr_scale=4.0), c=Scaled("q_proj", weight_decay=0.7)
    )
    assert by_name["model.layers.0.mlp.up_proj.weight"] == (2e-3, 0.1)
    assert by_name["model.layers.1.mlp.up_proj.weight"] == (4e-3, 0.1)
    assert by_name["model.layers.0.input_layernorm.weight"] == (5e-4, 0.0)
    assert by_name["model.layers.1.self_attn.q_proj.weight"] == (1e-3, 0.7)
    assert by_name["model.layers.1.self_attn.k_proj.weight"] == (1e-3, 0.1)
    assert sum(len(group["params"]) for group in groups) == len(by_name)


def test_two_mitigations_that_contradict_each_other_are_refused(build_groups):
    with pytest.raises(HarnessError, match=r"sets weight_decay of model\.layers\.0.* to 0\.2, but another .* to 0\.1"):
        build_groups(a=Scaled("q_proj", weight_decay=0.1), b=Scaled("q_proj", weight_decay=0.2))


def test_a_weight_of_another_model_is_refused(build_groups):
    class Foreign(Mitigation):
        def param_groups(self, model):
            return [{"params": [torch.nn.Parameter(torch.zeros(2))], "lr_scale": 2.0}]

    with pytest.raises(HarnessError, match="names a weight that the model lacks"):
        build_groups(a=Foreign())


def test_a_scaled_learning_rate_is_trained_and_the_log_has_that_of_the_spec(make_stage, fit, tiny_model):
    data = make_stage(learning_rate=1e-2, optimizer={"sgd": {"momentum": 0.0}}, max_grad_norm=1e9, batch_size=12)
    plain, _, _ = fit(data)
    scaled, result, _ = fit(data, {"scaled": Scaled("", lr_scale=3.0)})
    before = dict(tiny_model.named_parameters())
    for (name, weight), other in zip(plain.named_parameters(), scaled.parameters(), strict=True):
        assert torch.allclose(other - before[name], 3 * (weight - before[name]), atol=1e-6)
    assert [entry["learning_rate"] for entry in result.log] == [1e-2]


def test_on_before_step_changes_the_gradients_that_the_optimizer_gets(make_stage, fit, tiny_model):
    rates = []

    class FreezesEmbedding(Mitigation):
        def on_before_step(self, model, optimizer):
            rates.append(optimizer.param_groups[0]["lr"])
            model.get_input_embeddings().weight.grad.zero_()

    trained, _, _ = fit(make_stage(scheduler={"linear": {"final": 0.0}}), {"freezes": FreezesEmbedding()})
    assert torch.equal(trained.get_input_embeddings().weight, tiny_model.get_input_embeddings().weight)
    changed = trained.model.layers[0].mlp.up_proj.weight
    assert not torch.equal(changed, tiny_model.model.layers[0].mlp.up_proj.weight)
    assert rates == pytest.approx([1e-3, 2e-3 / 3, 1e-3 / 3])


def test_adamw_trains_as_the_trainer_of_transformers_does(make_stage, fit, monkeypatch):
    data = make_stage(weight_decay=0.1, optimizer={"adamw": {"betas": [0.9, 0.999], "eps": 1e-8}})
    trained, _, _ = fit(data)
    monkeypatch.delattr(StageTrainer, "create_optimizer")  # that of transformers remains
    expected, _, _ = fit(data)
    for weight, other in zip(trained.parameters(), expected.parameters(), strict=True):
        assert torch.equal(weight, other)


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_resumed_stage_equals_the_uninterrupted_one(optimizer, tiny_model, tokenizer, make_stage, tmp_path):
    data = make_stage(batch_size=2, save_steps=2, optimizer={optimizer: OPTIMIZERS[optimizer]}, scheduler=WSD)
    mitigations = {"scaled": Scaled("mlp", lr_scale=2.0)}

    def train(**options):
        model = copy.deepcopy(tiny_model)
        result = train_stage(model, tokenizer, data, mitigations, seed=0, folder=tmp_path, **options)
        return model.state_dict(), [(entry["loss"], entry["learning_rate"]) for entry in result.log]

    weights, log = train()
    assert len({rate for _, rate in log}) > 1
    newest = complete_checkpoints(tmp_path / "checkpoints")[-1]
    resumed, resumed_log = train(resume=newest.with_name("checkpoint-4"))
    assert log == resumed_log
    assert all(torch.equal(resumed[name], weight) for name, weight in weights.items())
    changed = [name for name, weight in weights.items() if not torch.equal(weight, tiny_model.state_dict()[name])]
    assert len(changed) == len(weights)
