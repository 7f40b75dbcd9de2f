"""EWC and L2-SP in training, by coupling: when the penalty acts, its limits, and its independence of accumulation."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from harness_mitigations.ewc import Ewc
from harness_mitigations.l2sp import L2Sp
from harness_mitigations.lora import Lora

from harness.interfaces.mitigation import Mitigation
from harness.seeding import seed_mitigations
from harness.training.checkpoint import complete_checkpoints
from harness.training.train_stage import train_stage
from harness.types import Stage, StageDataset, StageSource

SETTINGS = {
    "engine": "transformers",
    "epochs": 1,
    "steps": None,
    "learning_rate": 1e-3,
    "batch_size": 8,
    "accumulation": 1,
    "scheduler": {"constant": {}},
    "optimizer": {"adamw": {"betas": [0.9, 0.999], "eps": 1e-8}},
    "warmup_ratio": 0.0,
    "weight_decay": 0.0,
    "max_grad_norm": 0.5,
    "max_length": 64,
    "packing": False,
    "precision": "auto",
    "gradient_checkpointing": False,
    "log_steps": 1,
    "save_steps": None,
}
COUPLINGS = ("gradient", "loss", "proximal")


def ewc(strength=1.0, coupling="gradient", **options):
    defaults = {"labels": "sampled", "samples": 8, "batch_size": 4, "normalise": True, "clip": None, "decay": 0.5}
    storage = {"dtype": "float32", "place": "device", "cache": False}
    return Ewc(**{"source": "kept", "strength": strength, "coupling": coupling, **defaults, **storage, **options})


def l2sp(strength=1.0, coupling="gradient", anchor="base"):
    return L2Sp(strength, coupling, anchor, "device")


FACTORIES = {"ewc": ewc, "l2sp": l2sp}


class Spy(Mitigation):
    """Record the gradients that the optimizer gets."""

    priority = 1000

    def __init__(self):
        self.gradients = []

    def add_weight_penalty(self, model):
        self.gradients.append({n: w.grad.clone() for n, w in model.named_parameters() if w.grad is not None})


@pytest.fixture
def fit(tiny_model, tokenizer, tmp_path, make_rows):
    """Return a function that trains two epochs of eight rows: it returns weights by name, log and gradients."""

    def run(mitigations, *, order=None, model=None, rows=None, folder="run", **settings):
        model = copy.deepcopy(tiny_model) if model is None else model
        rows = make_rows(8) if rows is None else rows
        order = tuple((index,) for index in range(len(rows))) * 2 if order is None else order
        stage = Stage("stage", (StageSource("source", "domain"),), {**SETTINGS, **settings})
        spy = Spy()
        seed = seed_mitigations(0)
        for mitigation in mitigations.values():
            mitigation.on_stage_start(stage, model, {"kept": make_rows(8, 5)}, seed=seed)
        data = StageDataset(stage, rows, order, (len(order),), {}, 1.0)
        result = train_stage(model, tokenizer, data, {**mitigations, "~spy": spy}, seed=0, folder=tmp_path / folder)
        return {n: w.detach() for n, w in model.named_parameters()}, result.log, spy.gradients

    return run


def max_difference(one, other):
    assert one.keys() == other.keys()
    return max(float((one[name] - other[name]).abs().max()) for name in one)


@pytest.mark.parametrize("kind", FACTORIES)
def test_only_coupling_loss_warns_that_clipping_weakens_it(kind, fit):
    with pytest.warns(UserWarning, match=rf"mitigations\.{kind}\.coupling is 'loss': .* clips the penalty"):
        fit({kind: FACTORIES[kind](1.0, "loss")})
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        fit({kind: FACTORIES[kind](1.0, "gradient")})


# -- when it acts -----------------------------------------------------------------------------------------------------


class PenaltyInTheLoss(Mitigation):
    """The penalty as in the papers: with its graph, in the loss of every micro-batch."""

    def __init__(self, made):
        self.made = made

    def extra_loss(self, model, token_fraction):
        importance = self.made.importance
        total = 0.0
        for name, weight in model.named_parameters():
            f = 1.0 if importance is None else importance[name]
            total = total + (f * (weight - self.made.anchor[name]) ** 2).sum()
        return token_fraction * self.made.strength / 2 * total


@pytest.mark.parametrize("kind", FACTORIES)
@pytest.mark.parametrize(("batch", "accumulation"), [(8, 1), (2, 4), (1, 8)])
def test_coupling_loss_equals_a_penalty_in_the_loss(kind, batch, accumulation, fit, tiny_model):
    settings = {"batch_size": batch, "accumulation": accumulation}
    mitigation = FACTORIES[kind](3.0, "loss")
    weights, log, gradients = fit({kind: mitigation}, **settings)
    expected_weights, expected_log, expected_gradients = fit({kind: PenaltyInTheLoss(mitigation)}, **settings)
    assert max_difference(gradients[0], expected_gradients[0]) < 1e-6
    assert max_difference(gradients[1], expected_gradients[1]) < 2e-5  # after a step in which Adam amplifies rounding
    assert log[1]["grad_norm"] == pytest.approx(expected_log[1]["grad_norm"], rel=1e-4)
    assert log[1][f"penalty/{kind}"] == pytest.approx(expected_log[1][f"penalty/{kind}"], rel=1e-4)
    assert log[1]["loss"] == pytest.approx(expected_log[1]["loss"], rel=1e-4), "that of the task only"
    assert max_difference(weights, expected_weights) < 1e-4
    norm = torch.stack([gradient.norm() for gradient in gradients[1].values()]).norm()
    assert float(norm) == pytest.approx(0.5, rel=1e-3), "task gradient and penalty are clipped together"


@pytest.mark.parametrize("kind", FACTORIES)
def test_coupling_gradient_adds_to_the_clipped_task_gradient(kind, fit):
    # The first step is the same as without: at the second only the penalty differs.
    mitigation = FACTORIES[kind](3.0)
    _, log, gradients = fit({kind: mitigation})
    _, plain_log, plain_gradients = fit({})
    assert max_difference(gradients[0], plain_gradients[0]) == 0, "no weight has changed yet"
    assert log[0][f"penalty/{kind}"] == 0
    norm = torch.stack([gradient.norm() for gradient in plain_gradients[1].values()]).norm()
    assert float(norm) == pytest.approx(0.5, rel=1e-3)
    assert log[1]["grad_norm"] == pytest.approx(plain_log[1]["grad_norm"], rel=1e-5), "that of the task only"
    weights_after_first_step, _, _ = fit({}, order=tuple((index,) for index in range(8)))
    for name, gradient in gradients[1].items():
        f = 1.0 if mitigation.importance is None else mitigation.importance[name]
        assert torch.allclose(
            gradient - plain_gradients[1][name],
            3.0 * f * (weights_after_first_step[name] - mitigation.anchor[name]),
            atol=1e-5,
        ), name


@pytest.mark.parametrize("kind", FACTORIES)
def test_coupling_proximal_keeps_the_gradient_and_moves_weights_after_the_step(kind, fit):
    mitigation = FACTORIES[kind](200.0, "proximal")
    weights, _, gradients = fit({kind: mitigation}, order=tuple((index,) for index in range(8)))
    plain, _, expected = fit({}, order=tuple((index,) for index in range(8)))
    assert max_difference(gradients[0], expected[0]) == 0
    for name, weight in plain.items():
        f = 1.0 if mitigation.importance is None else mitigation.importance[name]
        expected_weight = mitigation.anchor[name] + (weight - mitigation.anchor[name]) / (1 + 1e-3 * 200 * f)
        assert torch.allclose(weights[name], expected_weight, atol=1e-7), name


# -- limits -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", FACTORIES)
@pytest.mark.parametrize("coupling", COUPLINGS)
def test_strength_zero_equals_plain_training_bit_for_bit(kind, coupling, fit):
    plain, log, _ = fit({}, weight_decay=0.1)
    idle, idle_log, _ = fit({kind: FACTORIES[kind](0.0, coupling)}, weight_decay=0.1)
    assert max_difference(plain, idle) == 0
    assert [entry["loss"] for entry in log] == [entry["loss"] for entry in idle_log]
    assert f"penalty/{kind}" not in idle_log[0]


def test_infinite_strength_keeps_the_initial_weights(fit, tiny_model):
    start = {name: weight.detach() for name, weight in tiny_model.named_parameters()}
    order = tuple((index,) for index in range(8)) * 10
    plain, _, _ = fit({}, order=order)
    assert max_difference(plain, start) > 5e-3
    trained, _, _ = fit({"l2sp": l2sp(1e30, "proximal")}, order=order)
    assert max_difference(trained, start) == 0
    mitigation = ewc(1e30, "proximal")
    trained, _, _ = fit({"ewc": mitigation}, order=order)
    for name, weight in trained.items():
        is_important = mitigation.importance[name] > 1e-20
        assert torch.equal(weight[is_important], start[name][is_important]), name
    for coupling in ("gradient", "loss"):  # Adam's step is at most the learning rate, whatever the penalty
        trained, _, _ = fit({"l2sp": l2sp(1e6, coupling)}, order=order)
        assert max_difference(trained, start) < 2.5e-3, coupling


@pytest.mark.slow
@pytest.mark.parametrize("kind", FACTORIES)
@pytest.mark.parametrize("coupling", COUPLINGS)
def test_a_stronger_penalty_gives_a_smaller_distance(kind, coupling, fit, tiny_model):
    start = {name: weight.detach() for name, weight in tiny_model.named_parameters()}
    order = tuple((index,) for index in range(8)) * 5
    results = []
    for strength in (0.0, 10.0, 1000.0):
        mitigation = FACTORIES[kind](strength, coupling)
        weights, _, _ = fit({kind: mitigation}, order=order)
        results.append(weights)
    importances = mitigation.importance or dict.fromkeys(start, 1.0)
    drifts = [sum(float((importances[n] * (weights[n] - start[n]) ** 2).sum()) for n in start) for weights in results]
    assert drifts[0] > drifts[1] > drifts[2]
    assert drifts[2] < 0.2 * drifts[0]


# -- independence of accumulation -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", FACTORIES)
@pytest.mark.parametrize("coupling", COUPLINGS)
def test_a_step_depends_on_neither_accumulation_nor_packing(kind, coupling, fit):
    runs = [
        fit({kind: FACTORIES[kind](5.0, coupling)}, **settings)
        for settings in (
            {"batch_size": 8},
            {"batch_size": 2, "accumulation": 4},
            {"batch_size": 1, "accumulation": 8},
            {"batch_size": 4, "packing": True, "order": ((0, 1), (2, 3, 4), (5,), (6, 7)) * 2},
        )
    ]
    weights, log, gradients = runs[0]
    assert log[1][f"penalty/{kind}"] > 0
    for other_weights, other_log, other_gradients in runs[1:]:
        assert max_difference(gradients[0], other_gradients[0]) < 1e-6
        assert max_difference(gradients[1], other_gradients[1]) < 5e-5
        assert max_difference(weights, other_weights) < 2e-4
        assert other_log[1][f"penalty/{kind}"] == pytest.approx(log[1][f"penalty/{kind}"], rel=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("kind", FACTORIES)
@pytest.mark.parametrize(("coupling", "lora"), [*((c, False) for c in COUPLINGS), ("gradient", True), ("loss", True)])
def test_a_resumed_stage_equals_an_uninterrupted_one(kind, coupling, lora, tiny_model, tmp_path, tokenizer, make_rows):
    def create_model():
        model = copy.deepcopy(tiny_model)
        if not lora:
            return model
        torch.manual_seed(2)
        return Lora(2, None, 0.1, "all-linear", False, False, "zero", None, 1, 1, ()).prepare_model(model, seed=0)

    rows = make_rows(12)
    stage = Stage("two", (StageSource("source", "domain"),), {**SETTINGS, "batch_size": 2, "save_steps": 2})
    data = StageDataset(stage, rows, tuple((index,) for index in range(12)), (12,), {}, 1.0)

    def start_second_stage(model):
        """Return the mitigation at the start of a second stage, with the importances of the first."""
        mitigation = FACTORIES[kind](5.0, coupling)
        seed = seed_mitigations(0)
        for name in ("one", "two"):
            mitigation.on_stage_start(Stage(name, ()), model, {"kept": make_rows(8, 5)}, seed=seed)
            if name == "one":
                mitigation.on_stage_end(Stage(name, ()), model, rows)
        return mitigation

    class Interrupted(Exception):
        pass

    def stop(step, metrics):
        if step == 5:
            raise Interrupted

    results = []
    for folder in ("uninterrupted", "resumed"):
        model = create_model()
        mitigation = start_second_stage(model)
        arguments = {"seed": 0, "folder": tmp_path / folder}
        if folder == "resumed":
            with pytest.raises(Interrupted):
                train_stage(model, tokenizer, data, {kind: mitigation}, **arguments, on_step=stop)
            model = create_model()
            mitigation = start_second_stage(model)
            arguments["resume"] = complete_checkpoints(tmp_path / "resumed" / "checkpoints")[-1]
            assert arguments["resume"].name == "checkpoint-4"
        result = train_stage(model, tokenizer, data, {kind: mitigation}, **arguments)
        log = [{k: v for k, v in entry.items() if k != "tokens_per_second"} for entry in result.log]
        results.append(({n: w.detach() for n, w in model.named_parameters()}, log))
    assert max_difference(results[0][0], results[1][0]) == 0
    assert results[0][1] == results[1][1]
    assert results[0][1][-1][f"penalty/{kind}"] > 0


# -- L2-SP only -------------------------------------------------------------------------------------------------------


def test_l2sp_anchors_at_the_base_or_at_the_start_of_each_stage(tiny_model):
    base, stage = l2sp(), l2sp(anchor="stage")
    for mitigation in (base, stage):
        mitigation.on_stage_start(Stage("one", ()), tiny_model, {}, seed=0)
    first = tiny_model.model.norm.weight.detach().clone()
    with torch.no_grad():
        tiny_model.model.norm.weight.add_(0.5)
    for mitigation in (base, stage):
        mitigation.on_stage_start(Stage("two", ()), tiny_model, {}, seed=0)
    assert torch.equal(base.anchor["model.norm.weight"].float(), first)
    assert torch.equal(stage.anchor["model.norm.weight"].float(), first + 0.5)


def test_l2sp_with_an_adapter_penalizes_the_change_of_the_weight(tiny_model):
    from harness.model.frozen_lora import lora_layers

    torch.manual_seed(0)
    model = Lora(3, None, 0.0, "all-linear", False, False, "zero", None, 1, 1, ()).prepare_model(tiny_model, seed=0)
    mitigation = l2sp(0.5)
    mitigation.on_stage_start(Stage("one", ()), model, {}, seed=0)
    layers = lora_layers(model)
    total, factors = 0.0, []
    for layer in layers.values():
        a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
        with torch.no_grad():
            b.add_(0.1 * torch.randn_like(b))
        total = total + 0.25 * (layer.scaling["default"] * b @ a).square().sum()
        factors += [a, b]
    expected = torch.autograd.grad(total, factors)
    for factor in factors:
        factor.grad = torch.zeros_like(factor)
    assert float(mitigation.add_weight_penalty(model)) == pytest.approx(float(total.detach()), rel=1e-5)
    for factor, wanted in zip(factors, expected, strict=True):
        assert torch.allclose(factor.grad, wanted, rtol=1e-4, atol=1e-7)
