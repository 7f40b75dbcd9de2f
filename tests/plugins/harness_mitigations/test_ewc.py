"""EWC as a mitigation: anchors, importances, penalties, adapters, and its cache."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from harness_mitigations import fisher_cache
from harness_mitigations.adapted_weights import find_trainable_weights
from harness_mitigations.ewc import Ewc
from harness_mitigations.fisher import compute_diagonal_fisher
from harness_mitigations.lora import Lora
from harness_mitigations.orthogonal_lora import OrthogonalLora
from transformers import LlamaConfig, LlamaForCausalLM

from harness.errors import HarnessError, RunError
from harness.model.load import ORIGIN_ATTRIBUTE
from harness.model.locate import ModelLocation
from harness.types import Stage, StageSource, TokenizedExample

STAGE = Stage("first", (StageSource("source", "domain"),), {})
SECOND = Stage("second", ())


def create_row(ids, start=1, name="row"):
    """Return a row whose tokens from `start` on are trained."""
    return TokenizedExample(name, "source", tuple(ids), (-100,) * start + tuple(ids[start:]))


ROWS = [
    create_row((7, 8, 9, 10, 11), 2),
    create_row((20, 21, 22), 1),
    create_row((30, 31, 32, 33), 3),
    create_row((40, 41, 42, 43), 2),
]

DEFAULTS = {
    "source": "kept",
    "strength": 1.0,
    "coupling": "gradient",
    "labels": "sampled",
    "samples": 64,
    "batch_size": 8,
    "normalise": True,
    "clip": None,
    "decay": 1.0,
    "dtype": "float32",
    "place": "device",
    "cache": True,
}


def create_ewc(**options):
    return Ewc(**{**DEFAULTS, **options})


def started_ewc(model, seed=0, **options):
    mitigation = create_ewc(**options)
    mitigation.on_stage_start(STAGE, model, {"kept": ROWS}, seed=seed)
    return mitigation


def flatten_importances(importance):
    return torch.cat([tensor.float().flatten() for tensor in importance.values()])


def measure_fisher(model, rows, **options):
    return compute_diagonal_fisher(model, find_trainable_weights(model, "test"), rows, **options)


def add_lora(model, rank=4):
    torch.manual_seed(0)
    return Lora(rank, None, 0.0, "all-linear", False, False, "zero", None, 1, 1, ()).prepare_model(model, seed=0)


def perturb(model, seed=1):
    """Change every trained weight a little and set its gradient to ones."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.requires_grad:
                weight.add_(0.05 * torch.randn_like(weight))
                weight.grad = torch.ones_like(weight)
    return model


# -- importances and anchors ------------------------------------------------------------------------------------------


def test_first_stage_anchors_the_base_and_the_next_keeps_its_importances(tiny_model):
    mitigation = started_ewc(tiny_model)
    assert torch.equal(mitigation.anchor["model.norm.weight"].float(), tiny_model.model.norm.weight)
    first = {name: importance.clone() for name, importance in mitigation.importance.items()}
    mitigation.on_stage_start(SECOND, tiny_model, {}, seed=0)
    assert all(torch.equal(first[name], mitigation.importance[name]) for name in first)


@pytest.mark.parametrize("labels", ["sampled", "empirical"])
def test_normalized_importances_have_mean_one(labels, tiny_model):
    mitigation = started_ewc(tiny_model, labels=labels)
    assert float(flatten_importances(mitigation.importance).mean()) == pytest.approx(1, rel=1e-4)
    raw = started_ewc(tiny_model, labels="empirical", normalise=False).importance
    assert torch.allclose(
        raw["model.norm.weight"], measure_fisher(tiny_model, ROWS, labels="empirical")["model.norm.weight"]
    )


@pytest.mark.parametrize("width", [8, 32, 96])
def test_strength_has_the_documented_unit_in_models_of_every_size(width):
    """The ratio of the gradients' norms is lambda eta sqrt(N) r / c once each weight has moved by eta."""
    torch.manual_seed(0)
    sizes = {"hidden_size": width, "intermediate_size": 2 * width, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=64, **sizes))
    mitigation = started_ewc(model, strength=3.0)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(1e-3 * torch.randn_like(weight).sign())
            weight.grad = torch.zeros_like(weight)
    mitigation.add_weight_penalty(model)
    count = sum(weight.numel() for weight in model.parameters())
    norm = sum(float(weight.grad.double().square().sum()) for weight in model.parameters()) ** 0.5
    expected = 3.0 * 1e-3 * count**0.5 * mitigation.stage_stats()["fisher_rms"]
    assert norm == pytest.approx(expected, rel=0.01)


def test_tail_of_the_fisher_is_reported_and_can_be_clipped(tiny_model):
    unclipped, clipped = (
        started_ewc(tiny_model, labels="empirical", clip=clip, normalise=False) for clip in (None, 0.9)
    )
    importance = flatten_importances(unclipped.importance)
    limit = float(importance.quantile(0.9))
    assert float(flatten_importances(clipped.importance).max()) == pytest.approx(limit, rel=0.005)
    below = importance < 0.99 * limit
    assert torch.equal(flatten_importances(clipped.importance)[below], importance[below])
    stats = unclipped.stage_stats()
    top = importance.sort(descending=True).values[: -(-len(importance) // 1000)]
    assert stats["fisher_mass_of_top_0.1_percent"] == pytest.approx(float(top.sum() / importance.sum()), rel=0.01)
    assert stats["fisher_median"] == pytest.approx(float(importance.median() / importance.mean()), rel=0.01)
    assert stats["fisher_largest"] == pytest.approx(float(importance.max() / importance.mean()), rel=0.01)
    assert float(flatten_importances(started_ewc(tiny_model, clip=0.9).importance).mean()) == pytest.approx(1, rel=1e-4)
    unclipped.on_stage_start(SECOND, tiny_model, {}, seed=0)
    assert unclipped.stage_stats() == {}, "nothing is measured for this stage"


def test_importances_depend_on_the_given_seed_and_not_on_global_state(tiny_model):
    def importance(seed, global_seed=0):
        torch.manual_seed(global_seed)
        return started_ewc(tiny_model, seed, samples=2).importance["model.norm.weight"]

    assert torch.equal(importance(1), importance(1, global_seed=9))
    assert not torch.equal(importance(1), importance(2))


def test_a_fisher_that_is_not_finite_is_an_error(tiny_model):
    with torch.no_grad():
        tiny_model.model.norm.weight[0] = float("nan")
    with pytest.raises(RunError, match="the Fisher of 4 rows is not finite"):
        started_ewc(tiny_model)


def test_storage_in_bfloat16_only_rounds(tiny_model):
    exact, short = started_ewc(tiny_model), started_ewc(tiny_model, dtype="bfloat16")
    assert {importance.dtype for importance in short.importance.values()} == {torch.bfloat16}
    for name, importance in exact.importance.items():
        assert torch.allclose(short.importance[name].float(), importance, rtol=2**-8, atol=0)
        assert torch.equal(short.anchor[name], exact.anchor[name]), "an anchor is never rounded"
    one, other = copy.deepcopy(perturb(tiny_model)), perturb(tiny_model, seed=9)
    other.load_state_dict(one.state_dict())
    for model, mitigation in ((one, exact), (other, short)):
        for weight in model.parameters():
            weight.grad = torch.zeros_like(weight)
        mitigation.add_weight_penalty(model)
    for a, b in zip(one.parameters(), other.parameters(), strict=True):
        assert torch.allclose(a.grad, b.grad, rtol=2**-8, atol=1e-9)


def test_anchor_is_stored_in_bfloat16_only_if_that_is_exact(tiny_model):
    rounded = copy.deepcopy(tiny_model)
    with torch.no_grad():
        for weight in rounded.parameters():
            weight.copy_(weight.bfloat16())
    assert {tensor.dtype for tensor in started_ewc(rounded).anchor.values()} == {torch.bfloat16}
    exact = started_ewc(tiny_model).anchor["model.embed_tokens.weight"]
    assert exact.dtype == torch.float32
    assert exact.data_ptr() != tiny_model.model.embed_tokens.weight.data_ptr()


def test_a_source_without_rows_is_an_error(tiny_model):
    with pytest.raises(HarnessError, match=r"mitigations\.ewc\.source: 'kept' has no row"):
        create_ewc().on_stage_start(STAGE, tiny_model, {"other": ROWS}, seed=0)


def test_a_model_without_a_trainable_weight_is_an_error(tiny_model):
    with pytest.raises(HarnessError, match="no weight of the model is trainable"):
        started_ewc(tiny_model.requires_grad_(False))


# -- the penalty ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("coupling", ["gradient", "loss"])
def test_penalty_is_added_to_the_gradients_and_returned(coupling, tiny_model):
    mitigation = started_ewc(tiny_model, strength=0.5, coupling=coupling)
    perturb(tiny_model)
    expected = {
        name: 1 + 0.5 * mitigation.importance[name] * (weight.detach() - mitigation.anchor[name])
        for name, weight in tiny_model.named_parameters()
    }
    value = mitigation.add_weight_penalty(tiny_model)
    total = sum(
        0.25 * float((mitigation.importance[name] * (weight.detach() - mitigation.anchor[name]) ** 2).sum())
        for name, weight in tiny_model.named_parameters()
    )
    assert float(value) == pytest.approx(total, rel=1e-4)
    for name, weight in tiny_model.named_parameters():
        assert torch.allclose(weight.grad, expected[name], atol=1e-6), name


def test_proximal_changes_weights_after_the_step_and_returns_the_penalty_before(tiny_model):
    mitigation = started_ewc(tiny_model, strength=0.5, coupling="proximal")
    perturb(tiny_model)
    before = {name: weight.detach().clone() for name, weight in tiny_model.named_parameters()}
    value = mitigation.add_weight_penalty(tiny_model)
    assert float(value) > 0
    assert all(torch.equal(weight.grad, torch.ones_like(weight)) for weight in tiny_model.parameters())
    mitigation.on_step_end(tiny_model, 0.0)
    assert all(torch.equal(before[name], weight) for name, weight in tiny_model.named_parameters())
    mitigation.on_step_end(tiny_model, 0.2)
    for name, weight in tiny_model.named_parameters():
        anchor = mitigation.anchor[name]
        expected = anchor + (before[name] - anchor) / (1 + 0.1 * mitigation.importance[name])
        assert torch.allclose(weight.detach(), expected, atol=1e-6), name


def test_a_weight_without_a_gradient_is_not_changed(tiny_model):
    mitigation = started_ewc(tiny_model)
    tiny_model.model.norm.weight.grad = torch.zeros(32)
    mitigation.add_weight_penalty(tiny_model)
    assert [name for name, weight in tiny_model.named_parameters() if weight.grad is not None] == ["model.norm.weight"]


# -- several stages ---------------------------------------------------------------------------------------------------


def test_a_finished_stage_adds_its_importances_and_updates_the_anchor(tiny_model):
    mitigation = started_ewc(tiny_model, labels="empirical", normalise=False, decay=0.25)
    first = mitigation.importance["model.norm.weight"].clone()
    with torch.no_grad():
        tiny_model.model.norm.weight.mul_(1.5)
    mitigation.on_stage_end(STAGE, tiny_model, ROWS[:2])
    mitigation.on_stage_start(SECOND, tiny_model, {}, seed=0)
    second = measure_fisher(tiny_model, ROWS[:2], labels="empirical")["model.norm.weight"]
    assert torch.allclose(mitigation.importance["model.norm.weight"], 0.25 * first + second)
    assert torch.equal(mitigation.anchor["model.norm.weight"].float(), tiny_model.model.norm.weight)
    assert mitigation.anchor["model.norm.weight"] is not tiny_model.model.norm.weight


@pytest.mark.parametrize("lora", [False, True])
def test_state_round_trips_between_two_stages(lora, tiny_model, tmp_path):
    model = add_lora(tiny_model) if lora else tiny_model
    mitigation = started_ewc(model, samples=3)
    perturb(model)
    mitigation.on_stage_end(STAGE, model, ROWS)
    torch.save(mitigation.state_dict(), tmp_path / "state.pt")
    restored = create_ewc(samples=3)
    restored.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    results = []
    for each in (mitigation, restored):
        model_copy = copy.deepcopy(model)
        each.on_stage_start(SECOND, model_copy, {}, seed=4)
        assert each.finished_rows == ()
        perturb(model_copy, seed=2)
        results.append(
            (each.add_weight_penalty(model_copy), [w.grad for w in model_copy.parameters() if w.grad is not None])
        )
    assert torch.equal(results[0][0], results[1][0])
    assert float(results[0][0]) > 0
    assert all(torch.equal(a, b) for a, b in zip(results[0][1], results[1][1], strict=True))


# -- with an adapter --------------------------------------------------------------------------------------------------


def merged_weights(model, mitigation):
    """Return the weights with the change of their adapters added, by name, with their graph."""
    from harness.model.frozen_lora import lora_layers

    merged = {}
    for name, layer in lora_layers(model).items():
        weight = layer.get_base_layer().weight
        for adapter in layer.active_adapters:
            factors = (layer.lora_B[adapter].weight @ layer.lora_A[adapter].weight) * layer.scaling[adapter]
            weight = weight + factors
        merged[f"{name}.weight"] = weight
    assert merged.keys() == mitigation.importance.keys()
    return merged


def test_fisher_of_an_adapted_layer_is_that_of_its_weight(tiny_model):
    plain = copy.deepcopy(tiny_model)
    model = add_lora(tiny_model)
    fisher = measure_fisher(model, ROWS, labels="empirical")
    expected = measure_fisher(plain, ROWS, labels="empirical")
    assert len(fisher) == 14
    for name, importance in fisher.items():
        expected_importance = expected[name.removeprefix("base_model.model.")]
        assert torch.allclose(importance, expected_importance, rtol=1e-4, atol=1e-10), name
    assert all(weight.grad is None for weight in tiny_model.parameters())
    sampled_fishers = [
        measure_fisher(model, ROWS, labels="sampled", batch_size=4, generator=torch.Generator().manual_seed(1))
        for model in (model, plain)
    ]
    name = "model.layers.0.mlp.up_proj.weight"
    assert torch.allclose(
        sampled_fishers[0][f"base_model.model.{name}"], sampled_fishers[1][name], rtol=1e-4, atol=1e-10
    )


def test_fisher_of_a_is_zero_at_the_start(tiny_model):
    # Why EWC does not act in the space of A and B.
    model = add_lora(tiny_model)
    logits = model(torch.tensor([ROWS[0].input_ids])).logits
    logits.log_softmax(-1)[0, 2, 11].backward()
    gradients = {name: w.grad for name, w in model.named_parameters() if w.grad is not None}
    assert all(float(g.abs().max()) == 0 for name, g in gradients.items() if "lora_A" in name)
    assert any(float(g.abs().max()) > 0 for name, g in gradients.items() if "lora_B" in name)


@pytest.mark.parametrize("moved", [False, True])
def test_penalty_on_an_adapter_has_the_gradient_through_the_merged_weight(moved, tiny_model):
    model = add_lora(tiny_model)
    if moved:
        perturb(model, seed=3)  # as at the start of a second stage: B is not zero
    mitigation = started_ewc(model, strength=0.7)
    before = {name: weight.detach().clone() for name, weight in merged_weights(model, mitigation).items()}
    perturb(model)
    merged = merged_weights(model, mitigation)
    penalty = sum(0.35 * (mitigation.importance[name] * (merged[name] - before[name]) ** 2).sum() for name in merged)
    factors = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    expected = torch.autograd.grad(penalty, list(factors.values()))
    value = mitigation.add_weight_penalty(model)
    assert float(value) == pytest.approx(float(penalty.detach()), rel=1e-4)
    for (name, weight), wanted in zip(factors.items(), expected, strict=True):
        assert torch.allclose(weight.grad, 1 + wanted, rtol=1e-4, atol=1e-5), name


def test_other_factors_of_the_same_change_have_no_penalty(tiny_model):
    from harness.model.frozen_lora import lora_layers

    model = perturb(add_lora(tiny_model))
    mitigation = started_ewc(model)
    m = torch.tensor([[2.0, 1, 0, 0], [0, 0.5, 0, 0], [0, 0, 1, 3], [0, 0, 0, 1]])
    with torch.no_grad():
        for layer in lora_layers(model).values():
            layer.lora_A["default"].weight.copy_(m @ layer.lora_A["default"].weight)
            layer.lora_B["default"].weight.copy_(layer.lora_B["default"].weight @ m.inverse())
    assert float(mitigation.add_weight_penalty(model)) < 1e-9


def test_frozen_adapters_of_earlier_stages_are_part_of_the_anchor(tiny_model):
    torch.manual_seed(0)
    adapter = OrthogonalLora(2, None, 0.0, "all-linear", 0.5)
    model = adapter.prepare_model(tiny_model, seed=0)
    adapter.on_stage_start(STAGE, model, {}, seed=0)
    mitigation = started_ewc(model)
    perturb(model)
    mitigation.on_stage_end(STAGE, model, ROWS)
    adapter.on_stage_start(SECOND, model, {}, seed=0)  # the change is frozen and the adapter reset
    mitigation.on_stage_start(SECOND, model, {}, seed=0)
    for weight in model.parameters():
        weight.grad = torch.zeros_like(weight) if weight.requires_grad else None
    assert float(mitigation.add_weight_penalty(model)) < 1e-9  # the frozen change is the trained one, up to rounding
    before = {name: weight.detach().clone() for name, weight in merged_weights(model, mitigation).items()}
    perturb(model)
    merged = merged_weights(model, mitigation)
    penalty = sum(float((mitigation.importance[n] * (merged[n] - before[n]) ** 2).detach().sum()) / 2 for n in merged)
    assert float(mitigation.add_weight_penalty(model)) == pytest.approx(penalty, rel=1e-3)


# -- incompatible with ------------------------------------------------------------------------------------------------


def test_incompatible_adapters_and_couplings_are_rejected(tiny_model):
    lora = Lora(4, None, 0.0, "all-linear", False, False, "zero", None, 1, 1, ())
    dora = Lora(4, None, 0.0, "all-linear", False, True, "zero", None, 1, 1, ())
    create_ewc().check_compatible({"lora": lora})
    create_ewc(coupling="proximal").check_compatible({})
    with pytest.raises(HarnessError, match=r"mitigations\.ewc: with DoRA .*dora to false"):
        create_ewc().check_compatible({"lora": dora})
    with pytest.raises(
        HarnessError, match=r"coupling: a proximal step .*'lora' .*cannot represent; set it to 'gradient'"
    ):
        create_ewc(coupling="proximal").check_compatible({"lora": lora})
    with pytest.raises(HarnessError, match="'osf' trains factors of a weight"):
        create_ewc().check_compatible({"osf": object()})
    torch.manual_seed(0)
    with pytest.raises(HarnessError, match="is not s B A"):
        started_ewc(dora.prepare_model(copy.deepcopy(tiny_model), seed=0))
    with pytest.raises(HarnessError, match="a proximal step"):
        started_ewc(add_lora(tiny_model), coupling="proximal")


def test_an_adapter_on_the_embeddings_is_rejected(tiny_model):
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(tiny_model, LoraConfig(r=2, target_modules=["embed_tokens", "q_proj"]))
    with pytest.raises(
        HarnessError, match=r"model.embed_tokens is a Embedding; set mitigations.lora.target to \[\"q_proj\"\]"
    ):
        started_ewc(model)


# -- disk cache -------------------------------------------------------------------------------------------------------


@pytest.fixture
def model_with_origin(tiny_model, tmp_path, monkeypatch):
    """Return the tiny model with the origin of a folder, and use an empty cache."""
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / "cache"))
    setattr(tiny_model, ORIGIN_ATTRIBUTE, ModelLocation("folder", "here", None, "digest"))
    torch.manual_seed(11)
    return tiny_model


def cache_entries(tmp_path):
    return sorted(path.name for path in (tmp_path / "cache" / "fisher").glob("*"))


def test_first_fisher_is_cached_for_the_next_run(model_with_origin, tmp_path, monkeypatch):
    first = started_ewc(model_with_origin)
    assert len(cache_entries(tmp_path)) == 1
    monkeypatch.setattr("harness_mitigations.fisher.compute_diagonal_fisher", None)  # it is not called again
    second = started_ewc(model_with_origin)
    assert all(torch.equal(second.importance[name], importance) for name, importance in first.importance.items())
    assert second.stage_stats() == first.stage_stats()
    assert second.stage_stats()


@pytest.mark.parametrize(
    "change",
    [
        {"labels": "empirical"}, {"samples": 2}, {"batch_size": 2}, {"normalise": False}, {"clip": 0.9},
        {"dtype": "bfloat16"},
    ],
)  # fmt: skip
def test_other_options_of_the_measurement_give_another_entry(change, model_with_origin, tmp_path):
    started_ewc(model_with_origin)
    started_ewc(model_with_origin, **change)
    assert len(cache_entries(tmp_path)) == 2


def test_options_that_do_not_affect_the_fisher_share_an_entry(model_with_origin, tmp_path):
    for options in ({}, {"strength": 9.0}, {"coupling": "proximal"}, {"decay": 0.5}):
        started_ewc(model_with_origin, **options)
    assert len(cache_entries(tmp_path)) == 1


def test_other_weights_rows_seeds_and_origins_give_other_entries(model_with_origin, tmp_path):
    started_ewc(model_with_origin)
    with torch.no_grad():
        model_with_origin.model.norm.weight.add_(0.01)  # trained since it was loaded
    started_ewc(model_with_origin)
    assert len(cache_entries(tmp_path)) == 2
    model_with_origin.model.layers[0].requires_grad_(False)
    started_ewc(model_with_origin)
    started_ewc(model_with_origin, seed=12)
    setattr(model_with_origin, ORIGIN_ATTRIBUTE, ModelLocation("folder", "here", None, "other"))
    started_ewc(model_with_origin)
    create_ewc().on_stage_start(STAGE, model_with_origin, {"kept": ROWS[:3]}, seed=0)
    assert len(cache_entries(tmp_path)) == 6


def test_models_of_unknown_origin_are_not_cached(model_with_origin, tmp_path):
    started_ewc(model_with_origin, cache=False)
    setattr(
        model_with_origin, ORIGIN_ATTRIBUTE, ModelLocation("hub", "org/model", "main", "hub:org/model")
    )  # the commit is unknown
    started_ewc(model_with_origin)
    delattr(model_with_origin, ORIGIN_ATTRIBUTE)
    started_ewc(model_with_origin)
    assert cache_entries(tmp_path) == []


def test_fisher_of_a_later_stage_is_not_cached(model_with_origin, tmp_path):
    mitigation = started_ewc(model_with_origin)
    mitigation.on_stage_end(STAGE, model_with_origin, ROWS)
    mitigation.on_stage_start(SECOND, model_with_origin, {}, seed=0)
    assert len(cache_entries(tmp_path)) == 1


def test_a_damaged_entry_is_measured_again_and_a_full_disk_warns(model_with_origin, tmp_path, monkeypatch):
    first = started_ewc(model_with_origin)
    (file,) = (tmp_path / "cache" / "fisher").iterdir()
    file.write_bytes(file.read_bytes()[:1000])
    second = started_ewc(model_with_origin)
    assert all(torch.equal(second.importance[name], importance) for name, importance in first.importance.items())
    assert file.stat().st_size > 1000
    file.unlink()

    def raise_disk_full(file):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(fisher_cache, "atomic_write", raise_disk_full)
    with pytest.warns(UserWarning, match=r"could not be saved to .*No space left"):
        started_ewc(model_with_origin)
    assert cache_entries(tmp_path) == []
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        started_ewc(model_with_origin, cache=False)
