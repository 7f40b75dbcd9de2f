"""EWC as a mitigation: what it anchors, when it measures, how it composes, and what it does to training."""

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

from harness.errors import HarnessError, RunError
from harness.model.load import ORIGIN_ATTRIBUTE
from harness.model.locate import ModelLocation
from harness.types import Stage, StageSource, TokenizedExample

torch.set_num_threads(1)
STAGE = Stage("first", (StageSource("source", "domain"),), {})
SECOND = Stage("second", ())


def row(ids, start=1, name="row"):
    """A row that trains its tokens from `start` on."""
    return TokenizedExample(name, "source", tuple(ids), (-100,) * start + tuple(ids[start:]))


ROWS = [row((7, 8, 9, 10, 11), 2), row((20, 21, 22), 1), row((30, 31, 32, 33), 3), row((40, 41, 42, 43), 2)]

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


def make(**options):
    return Ewc(**{**DEFAULTS, **options})


def begun(model, seed=0, **options):
    made = make(**options)
    made.on_stage_start(STAGE, model, {"kept": ROWS}, seed=seed)
    return made


def everything(importance):
    return torch.cat([tensor.float().flatten() for tensor in importance.values()])


def measured(model, rows, **options):
    return compute_diagonal_fisher(model, find_trainable_weights(model, "test"), rows, **options)


def adapted(model, rank=4):
    torch.manual_seed(0)
    return Lora(rank, None, 0.0, "all-linear", False, False, "zero", None, 1).prepare_model(model, seed=0)


def shaken(model, seed=1):
    """Every trained weight moved a little, with a gradient of ones."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.requires_grad:
                weight.add_(0.05 * torch.randn_like(weight))
                weight.grad = torch.ones_like(weight)
    return model


# -- what it measures and anchors -------------------------------------------------------------------------------------


def test_first_stage_anchors_the_base_and_the_next_keeps_its_importances(tiny_model):
    made = begun(tiny_model)
    assert torch.equal(made.anchor["model.norm.weight"].float(), tiny_model.model.norm.weight)
    first = {name: importance.clone() for name, importance in made.importance.items()}
    made.on_stage_start(SECOND, tiny_model, {}, seed=0)
    assert all(torch.equal(first[name], made.importance[name]) for name in first)


@pytest.mark.parametrize("labels", ["sampled", "empirical"])
def test_normalized_importances_have_mean_one(labels, tiny_model):
    made = begun(tiny_model, labels=labels)
    assert float(everything(made.importance).mean()) == pytest.approx(1, rel=1e-4)
    raw = begun(tiny_model, labels="empirical", normalise=False).importance
    assert torch.allclose(raw["model.norm.weight"], measured(tiny_model, ROWS, labels="empirical")["model.norm.weight"])


def test_tail_of_the_fisher_is_reported_and_can_be_clipped(tiny_model):
    whole, cut = (begun(tiny_model, labels="empirical", clip=clip, normalise=False) for clip in (None, 0.9))
    importance = everything(whole.importance)
    limit = float(importance.quantile(0.9))
    assert float(everything(cut.importance).max()) == pytest.approx(limit, rel=0.005)
    below = importance < 0.99 * limit
    assert torch.equal(everything(cut.importance)[below], importance[below])
    facts = whole.stage_stats()
    top = importance.sort(descending=True).values[: -(-len(importance) // 1000)]
    assert facts["fisher_mass_of_top_0.1_percent"] == pytest.approx(float(top.sum() / importance.sum()), rel=0.01)
    assert facts["fisher_median"] == pytest.approx(float(importance.median() / importance.mean()), rel=0.01)
    assert facts["fisher_largest"] == pytest.approx(float(importance.max() / importance.mean()), rel=0.01)
    assert float(everything(begun(tiny_model, clip=0.9).importance).mean()) == pytest.approx(1, rel=1e-4)
    whole.on_stage_start(SECOND, tiny_model, {}, seed=0)
    assert whole.stage_stats() == {}, "nothing was measured for this stage"


def test_importances_depend_on_the_given_seed_and_not_on_global_state(tiny_model):
    def importance(seed, global_seed=0):
        torch.manual_seed(global_seed)
        return begun(tiny_model, seed, samples=2).importance["model.norm.weight"]

    assert torch.equal(importance(1), importance(1, global_seed=9))
    assert not torch.equal(importance(1), importance(2))


def test_a_fisher_that_is_not_finite_is_an_error(tiny_model):
    with torch.no_grad():
        tiny_model.model.norm.weight[0] = float("nan")
    with pytest.raises(RunError, match="the Fisher of 4 rows is not finite"):
        begun(tiny_model)


def test_storage_in_bfloat16_only_rounds(tiny_model):
    exact, short = begun(tiny_model), begun(tiny_model, dtype="bfloat16")
    assert {importance.dtype for importance in short.importance.values()} == {torch.bfloat16}
    for name, importance in exact.importance.items():
        assert torch.allclose(short.importance[name].float(), importance, rtol=2**-8, atol=0)
        assert torch.equal(short.anchor[name], exact.anchor[name]), "an anchor is never rounded"
    one, other = copy.deepcopy(shaken(tiny_model)), shaken(tiny_model, seed=9)
    other.load_state_dict(one.state_dict())
    for model, made in ((one, exact), (other, short)):
        for weight in model.parameters():
            weight.grad = torch.zeros_like(weight)
        made.add_weight_penalty(model)
    for a, b in zip(one.parameters(), other.parameters(), strict=True):
        assert torch.allclose(a.grad, b.grad, rtol=2**-8, atol=1e-9)


def test_anchor_is_stored_in_bfloat16_only_if_that_is_exact(tiny_model):
    rounded = copy.deepcopy(tiny_model)
    with torch.no_grad():
        for weight in rounded.parameters():
            weight.copy_(weight.bfloat16())
    assert {tensor.dtype for tensor in begun(rounded).anchor.values()} == {torch.bfloat16}
    exact = begun(tiny_model).anchor["model.embed_tokens.weight"]
    assert exact.dtype == torch.float32
    assert exact.data_ptr() != tiny_model.model.embed_tokens.weight.data_ptr()


def test_a_source_without_rows_is_an_error(tiny_model):
    with pytest.raises(HarnessError, match=r"mitigations\.ewc\.source: 'kept' has no row"):
        make().on_stage_start(STAGE, tiny_model, {"other": ROWS}, seed=0)


def test_a_model_without_a_trainable_weight_is_an_error(tiny_model):
    with pytest.raises(HarnessError, match="no weight of the model is trainable"):
        begun(tiny_model.requires_grad_(False))


# -- the pull ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("coupling", ["gradient", "loss"])
def test_penalty_is_added_to_the_gradients_and_returned(coupling, tiny_model):
    made = begun(tiny_model, strength=0.5, coupling=coupling)
    shaken(tiny_model)
    expected = {
        name: 1 + 0.5 * made.importance[name] * (weight.detach() - made.anchor[name])
        for name, weight in tiny_model.named_parameters()
    }
    value = made.add_weight_penalty(tiny_model)
    total = sum(
        0.25 * float((made.importance[name] * (weight.detach() - made.anchor[name]) ** 2).sum())
        for name, weight in tiny_model.named_parameters()
    )
    assert float(value) == pytest.approx(total, rel=1e-4)
    for name, weight in tiny_model.named_parameters():
        assert torch.allclose(weight.grad, expected[name], atol=1e-6), name


def test_proximal_changes_weights_after_the_step_and_returns_the_penalty_before(tiny_model):
    made = begun(tiny_model, strength=0.5, coupling="proximal")
    shaken(tiny_model)
    before = {name: weight.detach().clone() for name, weight in tiny_model.named_parameters()}
    value = made.add_weight_penalty(tiny_model)
    assert float(value) > 0
    assert all(torch.equal(weight.grad, torch.ones_like(weight)) for weight in tiny_model.parameters())
    made.on_step_end(tiny_model, 0.0)
    assert all(torch.equal(before[name], weight) for name, weight in tiny_model.named_parameters())
    made.on_step_end(tiny_model, 0.2)
    for name, weight in tiny_model.named_parameters():
        anchor = made.anchor[name]
        expected = anchor + (before[name] - anchor) / (1 + 0.1 * made.importance[name])
        assert torch.allclose(weight.detach(), expected, atol=1e-6), name


def test_a_weight_without_a_gradient_is_not_changed(tiny_model):
    made = begun(tiny_model)
    tiny_model.model.norm.weight.grad = torch.zeros(32)
    made.add_weight_penalty(tiny_model)
    assert [name for name, weight in tiny_model.named_parameters() if weight.grad is not None] == ["model.norm.weight"]


# -- stage after stage ------------------------------------------------------------------------------------------------


def test_a_finished_stage_adds_its_importances_and_updates_the_anchor(tiny_model):
    made = begun(tiny_model, labels="empirical", normalise=False, decay=0.25)
    first = made.importance["model.norm.weight"].clone()
    with torch.no_grad():
        tiny_model.model.norm.weight.mul_(1.5)
    made.on_stage_end(STAGE, tiny_model, ROWS[:2])
    made.on_stage_start(SECOND, tiny_model, {}, seed=0)
    second = measured(tiny_model, ROWS[:2], labels="empirical")["model.norm.weight"]
    assert torch.allclose(made.importance["model.norm.weight"], 0.25 * first + second)
    assert torch.equal(made.anchor["model.norm.weight"].float(), tiny_model.model.norm.weight)
    assert made.anchor["model.norm.weight"] is not tiny_model.model.norm.weight


@pytest.mark.parametrize("lora", [False, True])
def test_state_round_trips_between_two_stages(lora, tiny_model, tmp_path):
    model = adapted(tiny_model) if lora else tiny_model
    made = begun(model, samples=3)
    shaken(model)
    made.on_stage_end(STAGE, model, ROWS)
    torch.save(made.state_dict(), tmp_path / "state.pt")
    again = make(samples=3)
    again.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    pulled = []
    for one in (made, again):
        other = copy.deepcopy(model)
        one.on_stage_start(SECOND, other, {}, seed=4)
        assert one.finished_rows == ()
        shaken(other, seed=2)
        pulled.append((one.add_weight_penalty(other), [w.grad for w in other.parameters() if w.grad is not None]))
    assert torch.equal(pulled[0][0], pulled[1][0])
    assert float(pulled[0][0]) > 0
    assert all(torch.equal(a, b) for a, b in zip(pulled[0][1], pulled[1][1], strict=True))


# -- with an adapter --------------------------------------------------------------------------------------------------


def merged_weights(model, made):
    """Weight name -> the weight with its adapter's changes in it, with its graph."""
    from harness.model.frozen_lora import lora_layers

    found = {}
    for name, layer in lora_layers(model).items():
        weight = layer.get_base_layer().weight
        for adapter in layer.active_adapters:
            factors = (layer.lora_B[adapter].weight @ layer.lora_A[adapter].weight) * layer.scaling[adapter]
            weight = weight + factors
        found[f"{name}.weight"] = weight
    assert found.keys() == made.importance.keys()
    return found


def test_fisher_of_an_adapted_layer_is_that_of_its_weight(tiny_model):
    plain = copy.deepcopy(tiny_model)
    model = adapted(tiny_model)
    found = measured(model, ROWS, labels="empirical")
    expected = measured(plain, ROWS, labels="empirical")
    assert len(found) == 14
    for name, importance in found.items():
        whole = expected[name.removeprefix("base_model.model.")]
        assert torch.allclose(importance, whole, rtol=1e-4, atol=1e-10), name
    assert all(weight.grad is None for weight in tiny_model.parameters())
    drawn = [
        measured(model, ROWS, labels="sampled", batch_size=4, generator=torch.Generator().manual_seed(1))
        for model in (model, plain)
    ]
    name = "model.layers.0.mlp.up_proj.weight"
    assert torch.allclose(drawn[0][f"base_model.model.{name}"], drawn[1][name], rtol=1e-4, atol=1e-10)


def test_fisher_of_a_is_zero_at_the_start(tiny_model):
    # Why EWC does not act in the space of A and B.
    model = adapted(tiny_model)
    logits = model(torch.tensor([ROWS[0].input_ids])).logits
    logits.log_softmax(-1)[0, 2, 11].backward()
    gradients = {name: w.grad for name, w in model.named_parameters() if w.grad is not None}
    assert all(float(g.abs().max()) == 0 for name, g in gradients.items() if "lora_A" in name)
    assert any(float(g.abs().max()) > 0 for name, g in gradients.items() if "lora_B" in name)


@pytest.mark.parametrize("moved", [False, True])
def test_penalty_on_an_adapter_has_the_gradient_through_the_merged_weight(moved, tiny_model):
    model = adapted(tiny_model)
    if moved:
        shaken(model, seed=3)  # as a second stage finds it: B is no longer zero
    made = begun(model, strength=0.7)
    before = {name: weight.detach().clone() for name, weight in merged_weights(model, made).items()}
    shaken(model)
    merged = merged_weights(model, made)
    penalty = sum(0.35 * (made.importance[name] * (merged[name] - before[name]) ** 2).sum() for name in merged)
    factors = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    expected = torch.autograd.grad(penalty, list(factors.values()))
    value = made.add_weight_penalty(model)
    assert float(value) == pytest.approx(float(penalty.detach()), rel=1e-4)
    for (name, weight), wanted in zip(factors.items(), expected, strict=True):
        assert torch.allclose(weight.grad, 1 + wanted, rtol=1e-4, atol=1e-5), name


def test_other_factors_of_the_same_change_have_no_penalty(tiny_model):
    from harness.model.frozen_lora import lora_layers

    model = shaken(adapted(tiny_model))
    made = begun(model)
    m = torch.tensor([[2.0, 1, 0, 0], [0, 0.5, 0, 0], [0, 0, 1, 3], [0, 0, 0, 1]])
    with torch.no_grad():
        for layer in lora_layers(model).values():
            layer.lora_A["default"].weight.copy_(m @ layer.lora_A["default"].weight)
            layer.lora_B["default"].weight.copy_(layer.lora_B["default"].weight @ m.inverse())
    assert float(made.add_weight_penalty(model)) < 1e-9


def test_frozen_adapters_of_earlier_stages_are_part_of_the_anchor(tiny_model):
    torch.manual_seed(0)
    adapter = OrthogonalLora(2, None, 0.0, "all-linear", 0.5)
    model = adapter.prepare_model(tiny_model, seed=0)
    adapter.on_stage_start(STAGE, model, {}, seed=0)
    made = begun(model)
    shaken(model)
    made.on_stage_end(STAGE, model, ROWS)
    adapter.on_stage_start(SECOND, model, {}, seed=0)  # what was learned is kept, the adapter begins anew
    made.on_stage_start(SECOND, model, {}, seed=0)
    for weight in model.parameters():
        weight.grad = torch.zeros_like(weight) if weight.requires_grad else None
    assert (
        float(made.add_weight_penalty(model)) < 1e-9
    )  # what was trained is now kept: the same change, rounded elsewhere
    before = {name: weight.detach().clone() for name, weight in merged_weights(model, made).items()}
    shaken(model)
    merged = merged_weights(model, made)
    penalty = sum(float((made.importance[n] * (merged[n] - before[n]) ** 2).detach().sum()) / 2 for n in merged)
    assert float(made.add_weight_penalty(model)) == pytest.approx(penalty, rel=1e-3)


# -- what it does not go with -----------------------------------------------------------------------------------------


def test_incompatible_adapters_and_couplings_are_rejected(tiny_model):
    lora = Lora(4, None, 0.0, "all-linear", False, False, "zero", None, 1)
    dora = Lora(4, None, 0.0, "all-linear", False, True, "zero", None, 1)
    make().check_compatible({"lora": lora})
    make(coupling="proximal").check_compatible({})
    with pytest.raises(HarnessError, match=r"mitigations\.ewc: with DoRA .*dora to false"):
        make().check_compatible({"lora": dora})
    with pytest.raises(
        HarnessError, match=r"coupling: a proximal step .*'lora' .*cannot represent; set it to 'gradient'"
    ):
        make(coupling="proximal").check_compatible({"lora": lora})
    with pytest.raises(HarnessError, match="'osf' trains factors of a weight"):
        make().check_compatible({"osf": object()})
    torch.manual_seed(0)
    with pytest.raises(HarnessError, match="is not s B A"):
        begun(dora.prepare_model(copy.deepcopy(tiny_model), seed=0))
    with pytest.raises(HarnessError, match="a proximal step"):
        begun(adapted(tiny_model), coupling="proximal")


def test_an_adapter_on_the_embeddings_is_rejected(tiny_model):
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(tiny_model, LoraConfig(r=2, target_modules=["embed_tokens", "q_proj"]))
    with pytest.raises(HarnessError, match="embed_tokens is of type Embedding and has an adapter; adapt linear layers"):
        begun(model)


# -- kept on disk -----------------------------------------------------------------------------------------------------


@pytest.fixture
def known(tiny_model, tmp_path, monkeypatch):
    """The tiny model as if it came from files, and a cache of its own."""
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / "cache"))
    setattr(tiny_model, ORIGIN_ATTRIBUTE, ModelLocation("folder", "here", None, "digest"))
    torch.manual_seed(11)
    return tiny_model


def entries(tmp_path):
    return sorted(path.name for path in (tmp_path / "cache" / "fisher").glob("*"))


def test_first_fisher_is_cached_for_the_next_run(known, tmp_path, monkeypatch):
    one = begun(known)
    assert len(entries(tmp_path)) == 1
    monkeypatch.setattr("harness_mitigations.fisher.compute_diagonal_fisher", None)  # it is not called again
    other = begun(known)
    assert all(torch.equal(other.importance[name], importance) for name, importance in one.importance.items())
    assert other.stage_stats() == one.stage_stats()
    assert other.stage_stats()


@pytest.mark.parametrize(
    "change",
    [
        {"labels": "empirical"}, {"samples": 2}, {"batch_size": 2}, {"normalise": False}, {"clip": 0.9},
        {"dtype": "bfloat16"},
    ],
)  # fmt: skip
def test_other_options_of_the_measurement_give_another_entry(change, known, tmp_path):
    begun(known)
    begun(known, **change)
    assert len(entries(tmp_path)) == 2


def test_options_that_do_not_affect_the_fisher_share_an_entry(known, tmp_path):
    for options in ({}, {"strength": 9.0}, {"coupling": "proximal"}, {"decay": 0.5}):
        begun(known, **options)
    assert len(entries(tmp_path)) == 1


def test_other_weights_rows_seeds_and_origins_give_other_entries(known, tmp_path):
    begun(known)
    with torch.no_grad():
        known.model.norm.weight.add_(0.01)  # trained since it was loaded
    begun(known)
    assert len(entries(tmp_path)) == 2
    known.model.layers[0].requires_grad_(False)
    begun(known)
    begun(known, seed=12)
    setattr(known, ORIGIN_ATTRIBUTE, ModelLocation("folder", "here", None, "other"))
    begun(known)
    make().on_stage_start(STAGE, known, {"kept": ROWS[:3]}, seed=0)
    assert len(entries(tmp_path)) == 6


def test_models_of_unknown_origin_are_not_cached(known, tmp_path):
    begun(known, cache=False)
    setattr(
        known, ORIGIN_ATTRIBUTE, ModelLocation("hub", "org/model", "main", "hub:org/model")
    )  # the commit is not known
    begun(known)
    delattr(known, ORIGIN_ATTRIBUTE)
    begun(known)
    assert entries(tmp_path) == []


def test_fisher_of_a_later_stage_is_not_cached(known, tmp_path):
    made = begun(known)
    made.on_stage_end(STAGE, known, ROWS)
    made.on_stage_start(SECOND, known, {}, seed=0)
    assert len(entries(tmp_path)) == 1


def test_a_damaged_entry_is_measured_again_and_a_full_disk_warns(known, tmp_path, monkeypatch):
    one = begun(known)
    (file,) = (tmp_path / "cache" / "fisher").iterdir()
    file.write_bytes(file.read_bytes()[:1000])
    again = begun(known)
    assert all(torch.equal(again.importance[name], importance) for name, importance in one.importance.items())
    assert file.stat().st_size > 1000
    file.unlink()

    def full(source, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(fisher_cache.os, "replace", full)
    with pytest.warns(UserWarning, match=r"could not be saved to .*No space left"):
        begun(known)
    assert entries(tmp_path) == []
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        begun(known, cache=False)
