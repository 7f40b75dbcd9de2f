"""OSF: every stage decomposes its initial weights and changes only their weakest directions."""

from __future__ import annotations

import copy

import pytest
import torch
from harness_mitigations.osf import Osf

from harness.model import save, svd_subspaces
from harness.types import Stage, StageSource

IDS = torch.tensor([[5, 6, 7, 8]])
STAGE = Stage("next", (StageSource("source", "domain"),))
LAYERS = ["mlp.up_proj", "mlp.down_proj", "self_attn.q_proj", "self_attn.k_proj"]
"""Tall, wide, square, and one with fewer outputs than inputs."""


def create_osf(**options):
    return Osf(**({"preserve": 0.5, "target": "all-linear"} | options))


def weights(model):
    """Return the weight that each layer computes with."""
    return {name: svd_subspaces.effective_weight(layer) for name, layer in svd_subspaces.subspace_layers(model).items()}


def strongest(weight, count):
    u, _, v = torch.linalg.svd(weight, full_matrices=False)
    return u[:, :count], v[:count]


def strengthen_weakest_directions(model, scale=3.0):
    """Make the weakest direction of every layer the strongest by far, and rotate it a little."""
    with torch.no_grad():
        for layer in svd_subspaces.subspace_layers(model).values():
            u, s, _ = svd_subspaces.trainable_svd_factors(layer)
            s[-1] = scale * float(torch.linalg.matrix_norm(svd_subspaces.effective_weight(layer), 2))
            u[:, -1] += 0.1 * u[:, 0]
    return model


@pytest.mark.slow
@pytest.mark.parametrize("name", LAYERS)
def test_each_stage_preserves_its_strongest_initial_directions(name, run_stages, make_rows, tiny_model):
    """Under AdamW with weight decay: the directions of the base first, then those that the last stage left."""
    layer, seen = f"base_model.model.model.layers.0.{name}", []
    stages = [make_rows(8), make_rows(8, 1), make_rows(8, 2)]
    run_stages(
        tiny_model,
        {"osf": create_osf(preserve=0.25)},
        stages,
        watch=lambda _, model: seen.append(weights(model)[layer]),
        weight_decay=0.1,
        learning_rate=5e-2,
    )
    count, base_overlaps = min(seen[0].shape) // 4, []
    for initial, final in zip(seen[::2], seen[1::2], strict=True):
        u, v = strongest(initial, count)
        change = final - initial
        assert float(change.norm()) > 1e-2
        assert float((u.T @ change).norm()) < 2e-5
        assert float((change @ v.T).norm()) < 2e-5
        base_u, _ = strongest(seen[0], count)
        base_overlaps.append(float((base_u.T @ change).norm()))
    assert max(base_overlaps[1:]) > 1e-3, (
        "later stages freeze other directions than those of the base, or this test shows nothing"
    )


def test_a_stage_decomposes_the_weights_of_the_previous_one_and_computes_the_same(tiny_model):
    mitigation = create_osf()
    model = strengthen_weakest_directions(mitigation.prepare_model(tiny_model, seed=0)).eval()
    before, logits = weights(model), model(IDS).logits
    mitigation.on_stage_start(STAGE, model, {}, seed=0)
    torch.testing.assert_close(model(IDS).logits, logits, rtol=1e-4, atol=1e-5)
    for name, layer in svd_subspaces.subspace_layers(model).items():
        torch.testing.assert_close(svd_subspaces.effective_weight(layer), before[name], rtol=1e-4, atol=1e-5)
        u, v = strongest(before[name], layer.effective_rank["default"])
        held_u, held_v = svd_subspaces.frozen_singular_vectors(layer)
        torch.testing.assert_close(held_u @ held_u.T, u @ u.T, rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(held_v.T @ held_v, v.T @ v, rtol=1e-3, atol=1e-4)
        low, *_ = svd_subspaces.trainable_svd_factors(layer)
        torch.testing.assert_close(low.T @ low, torch.eye(low.shape[1]), rtol=1e-4, atol=1e-5)


def test_directions_that_a_stage_made_strong_are_frozen_in_the_next(tiny_model):
    """The direction that became the strongest was trainable before and is frozen after."""
    mitigation = create_osf()
    model = strengthen_weakest_directions(mitigation.prepare_model(tiny_model, seed=0))
    learned = {
        name: svd_subspaces.trainable_svd_factors(layer)[0][:, -1].detach().clone()
        for name, layer in svd_subspaces.subspace_layers(model).items()
    }
    mitigation.on_stage_start(STAGE, model, {}, seed=0)
    for name, layer in svd_subspaces.subspace_layers(model).items():
        frozen, _ = svd_subspaces.frozen_singular_vectors(layer)
        direction = learned[name] / learned[name].norm()
        assert float((frozen.T @ direction).norm()) > 0.99


def test_an_unchanged_weight_is_not_decomposed_again(tiny_model, monkeypatch):
    mitigation = create_osf()
    model = mitigation.prepare_model(tiny_model, seed=0)
    monkeypatch.setattr(torch.linalg, "svd", lambda *_, **__: pytest.fail("no weight has changed"))
    mitigation.on_stage_start(STAGE, model, {}, seed=0)


def test_base_model_is_unchanged_and_memory_bounded_over_many_stages(tiny_model):
    before = copy.deepcopy(tiny_model).eval()(IDS).logits
    mitigation = create_osf()
    model = mitigation.prepare_model(tiny_model, seed=0).eval()
    parameters = {name: id(one) for name, one in model.named_parameters()}
    for _ in range(4):
        strengthen_weakest_directions(model, 1.1)
        logits = model(IDS).logits
        mitigation.on_stage_start(STAGE, model, {}, seed=0)
        torch.testing.assert_close(model(IDS).logits, logits, rtol=1e-4, atol=1e-4)
    with save.adapter_disabled(model):
        assert torch.equal(model(IDS).logits, before)
    assert {name: id(one) for name, one in model.named_parameters()} == parameters
    for layer in svd_subspaces.subspace_layers(model).values():
        assert svd_subspaces.removed_component(layer)[0].shape[1] <= min(layer.in_features, layer.out_features)


def test_few_trainable_directions_need_few_columns(tiny_model):
    mitigation = create_osf(preserve=0.9)
    model = strengthen_weakest_directions(mitigation.prepare_model(tiny_model, seed=0))
    logits = model.eval()(IDS).logits
    mitigation.on_stage_start(STAGE, model, {}, seed=0)
    torch.testing.assert_close(model(IDS).logits, logits, rtol=1e-4, atol=1e-4)
    layer = model.get_submodule("base_model.model.model.layers.0.mlp.up_proj")
    free = svd_subspaces.trainable_svd_factors(layer)[0].shape[1]
    assert svd_subspaces.removed_component(layer)[0].shape[1] == 3 * free < min(layer.in_features, layer.out_features)


def test_a_16_bit_base_under_autocast_loses_no_precision(tiny_model):
    base = copy.deepcopy(tiny_model).bfloat16()
    mitigation = create_osf()
    model = mitigation.prepare_model(base, seed=0)
    for layer in svd_subspaces.subspace_layers(model).values():
        u, *_ = svd_subspaces.trainable_svd_factors(layer)
        assert u.dtype is torch.float32
        torch.testing.assert_close(u.T @ u, torch.eye(u.shape[1]), rtol=1e-5, atol=1e-5)
    strengthen_weakest_directions(model)
    before = weights(model)
    with torch.autocast("cpu", torch.bfloat16):
        mitigation.on_stage_start(STAGE, model, {}, seed=0)
    for name, after in weights(model).items():
        torch.testing.assert_close(after, before[name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_saved_model_equals_the_model_in_memory(dtype, tiny_model, tokenizer, tmp_path):
    """Complete, without the adapter, in float32: 16 bits would round the change away."""
    from transformers import AutoModelForCausalLM

    mitigation = create_osf()
    model = strengthen_weakest_directions(mitigation.prepare_model(tiny_model.to(dtype), seed=0))
    mitigation.on_stage_start(STAGE, model, {}, seed=0)
    strengthen_weakest_directions(model, 1.1)
    save.save_model(model, tokenizer, tmp_path / "saved")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    assert loaded.dtype is torch.float32
    assert loaded.lm_head.weight is loaded.model.embed_tokens.weight
    expected = weights(model)
    for name, weight in expected.items():
        plain = name.removeprefix("base_model.model.")
        assert torch.equal(loaded.get_submodule(plain).weight, weight)
    assert len(expected) == 14
    torch.testing.assert_close(loaded.eval()(IDS).logits, model.float().eval()(IDS).logits, rtol=1e-4, atol=1e-5)
    assert model.config.dtype is not torch.float32 or dtype is torch.float32, "the model itself is unchanged"
    assert not save.saves_as_adapter(model)


def test_merging_under_autocast_loses_no_precision(tiny_model):
    model = strengthen_weakest_directions(create_osf().prepare_model(tiny_model, seed=0))
    expected = weights(model)
    with torch.autocast("cpu", torch.bfloat16):
        merged = save.merge_adapter(model)
    for name, weight in expected.items():
        torch.testing.assert_close(merged.get_submodule(name.removeprefix("base_model.model.")).weight, weight)
