"""LoRA: begins at the base, trains only the adapter, and depends on the seed alone."""

from __future__ import annotations

import copy

import pytest
import torch
from harness_mitigations.lora import Lora, lora_scaling
from support.architectures import build_architecture

from harness.errors import HarnessError
from harness.model import frozen_lora, save
from harness.types import Stage

IDS = torch.tensor([[5, 6, 7, 8]])


def create_lora(**options):
    defaults = {"rank": 4, "alpha": None, "dropout": 0.0, "target": "all-linear", "rslora": False, "dora": False}
    return Lora(
        **(defaults | {"start": "zero", "source": None, "samples": 8, "loraplus_ratio": 1, "parameters": ()} | options)
    )


def start_first_stage(mitigation, model, rows=()):
    """Return the adapted model at the start of the first stage."""
    torch.manual_seed(3)
    model = mitigation.prepare_model(model, seed=0)
    mitigation.on_stage_start(Stage("one", ()), model, {"general": rows}, seed=0)
    return model.eval()


def perturb(model):
    """Change every adapter weight."""
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_" in name:
                weight.add_(0.1)
    return model


def test_the_adapted_model_starts_as_the_base_bit_for_bit(tiny_model):
    before = tiny_model(IDS).logits
    assert torch.equal(create_lora().prepare_model(tiny_model, seed=0)(IDS).logits, before)


def test_the_disabled_adapter_equals_the_base_bit_for_bit(tiny_model):
    before = tiny_model(IDS).logits
    model = perturb(create_lora().prepare_model(tiny_model, seed=0))
    assert not torch.allclose(model(IDS).logits, before, atol=1e-3)
    with model.disable_adapter():
        assert torch.equal(model(IDS).logits, before)


def test_only_adapters_are_trainable_and_every_linear_layer_but_the_head_has_one(tiny_model):
    linear = [name for name, part in tiny_model.named_modules() if isinstance(part, torch.nn.Linear)]
    model = create_lora(rank=3).prepare_model(tiny_model, seed=0)
    trainable = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    assert all("lora_A" in name or "lora_B" in name for name in trainable)
    assert len(trainable) == 2 * (len(linear) - 1)
    assert {min(weight.shape) for weight in trainable.values()} == {3}


@pytest.mark.parametrize(("alpha", "scale"), [(None, 2.0), (4, 1.0), (10.0, 2.5)])
def test_alpha_over_rank_scales_the_change(alpha, scale, tiny_model):
    model = perturb(create_lora(alpha=alpha).prepare_model(tiny_model, seed=0))
    layer = model.base_model.model.model.layers[0].mlp.up_proj
    x = torch.randn(2, 32)
    change = layer(x) - layer.base_layer(x)
    expected = scale * x @ layer.lora_A["default"].weight.T @ layer.lora_B["default"].weight.T
    assert torch.allclose(change, expected, atol=1e-5)


@pytest.mark.parametrize("target", ["q_proj", ["q_proj"]])
def test_target_is_a_name_and_not_a_pattern(target, tiny_model):
    model = create_lora(target=target).prepare_model(tiny_model, seed=0)
    adapted = {name.split(".lora_")[0] for name, _ in model.named_parameters() if "lora_" in name}
    assert {name.rsplit(".", 1)[1] for name in adapted} == {"q_proj"}


def test_adapter_depends_on_the_given_seed_and_not_on_global_state(tiny_model):
    def initial_a(seed, global_seed):
        torch.manual_seed(global_seed)
        model = create_lora().prepare_model(copy.deepcopy(tiny_model), seed=seed)
        return model.base_model.model.model.layers[0].mlp.up_proj.lora_A["default"].weight

    assert torch.equal(initial_a(1, global_seed=0), initial_a(1, global_seed=7))
    assert not torch.equal(initial_a(1, global_seed=0), initial_a(2, global_seed=0))


def test_adding_an_adapter_does_not_change_global_random_state(tiny_model):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    create_lora().prepare_model(tiny_model, seed=0)
    assert torch.equal(torch.rand(3), expected)


def test_adapter_weights_are_float32_on_a_bfloat16_base(tiny_model):
    model = create_lora().prepare_model(tiny_model.bfloat16(), seed=0)
    assert {weight.dtype for name, weight in model.named_parameters() if "lora_" in name} == {torch.float32}


def test_dropout_acts_in_training_only(tiny_model):
    model = perturb(create_lora(dropout=0.5).prepare_model(tiny_model, seed=0))
    model.train()
    assert not torch.equal(model(IDS).logits, model(IDS).logits)
    model.eval()
    assert torch.equal(model(IDS).logits, model(IDS).logits)


def test_a_second_adapter_is_rejected(tiny_model):
    model = create_lora().prepare_model(tiny_model, seed=0)
    with pytest.raises(HarnessError, match=r"mitigations\.lora: the model already has an adapter"):
        create_lora().prepare_model(model, seed=0)


@pytest.mark.parametrize("target", ["lm_head", ["q_proj", "lm_head"]])
def test_an_adapter_on_the_head_is_rejected(target, tiny_model):
    with pytest.raises(HarnessError, match=r"mitigations\.lora\.target: the output head cannot be adapted"):
        create_lora(target=target).prepare_model(tiny_model, seed=0)


def test_an_unknown_module_is_an_error(tiny_model):
    with pytest.raises(HarnessError, match=r"mitigations\.lora\.target: .*query_key_value.*all-linear"):
        create_lora(target=["query_key_value"]).prepare_model(tiny_model, seed=0)


# -- variants ---------------------------------------------------------------------------------------------------------

STARTS = ["pissa", "olora", "corda"]


def test_rslora_scales_by_the_root_of_the_rank(tiny_model):
    assert lora_scaling(16, 32, False) == 2
    assert lora_scaling(16, 32, True) == 8
    model = create_lora(rank=4, alpha=6, rslora=True).prepare_model(tiny_model, seed=0)
    assert {layer.scaling["default"] for layer in frozen_lora.lora_layers(model).values()} == {3.0}


def test_dora_starts_as_the_base_and_trains_magnitudes(tiny_model):
    before = tiny_model.eval()(IDS).logits
    model = create_lora(dora=True).prepare_model(tiny_model, seed=0).eval()
    assert torch.allclose(model(IDS).logits, before, atol=1e-5)
    magnitudes = [w for name, w in model.named_parameters() if "magnitude" in name and w.requires_grad]
    assert len(magnitudes) == len(frozen_lora.lora_layers(model))


@pytest.mark.parametrize("start", STARTS)
def test_initialization_from_the_weights_changes_neither_model_nor_base(start, tiny_model, make_rows):
    before = tiny_model.eval()(IDS).logits
    model = start_first_stage(create_lora(start=start, source="general"), tiny_model, make_rows(10))
    for layer in frozen_lora.lora_layers(model).values():
        assert float((layer.lora_B["default"].weight @ layer.lora_A["default"].weight).detach().norm()) > 1e-3
    assert torch.allclose(model(IDS).logits, before, atol=1e-5)
    with save.adapter_disabled(model):
        assert torch.equal(model(IDS).logits, before)


@pytest.mark.parametrize("start", ["pissa", "olora"])
def test_gradients_equal_those_of_pefts_initialization(start, tiny_model):
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(task_type="CAUSAL_LM", r=4, lora_alpha=8, target_modules="all-linear", init_lora_weights=start)
    theirs = get_peft_model(copy.deepcopy(tiny_model), config).eval()
    ours = start_first_stage(create_lora(start=start), tiny_model)
    grads = []
    for model in (ours, theirs):
        model(IDS, labels=IDS).loss.backward()
        layers = frozen_lora.lora_layers(model)
        for layer in layers.values():  # the sign of a singular vector is free; the product's change is not
            a, b = (getattr(layer, f"lora_{one}")["default"].weight for one in "AB")
            grads.append(b.grad @ a + b @ a.grad)
    half = len(grads) // 2
    for one, two in zip(grads[:half], grads[half:], strict=True):
        assert torch.allclose(one, two, atol=1e-5)


@pytest.mark.parametrize("start", STARTS)
def test_initialization_from_a_transposed_weight_changes_neither_model_nor_base(start, tokenizer, make_rows):
    model = build_architecture("gpt2", tokenizer)
    before = model(IDS).logits
    model = start_first_stage(create_lora(start=start, source="general"), model, make_rows(10))
    assert torch.allclose(model(IDS).logits, before, atol=1e-5)
    with save.adapter_disabled(model):
        assert torch.equal(model(IDS).logits, before)


def test_pissa_of_a_transposed_square_weight_is_its_best_approximation(tokenizer):
    model = start_first_stage(create_lora(start="pissa"), build_architecture("gpt2", tokenizer))
    layer = model.get_submodule("base_model.model.transformer.h.0.attn.c_proj")
    weight = layer.get_base_layer().weight  # (inputs, outputs)
    a, b = (getattr(layer, f"lora_{letter}")["default"].weight for letter in "AB")
    error = torch.linalg.matrix_norm(weight.T - layer.scaling["default"] * b @ a)
    assert torch.allclose(error**2, torch.linalg.svdvals(weight)[4:].square().sum(), rtol=1e-4)


@pytest.mark.parametrize("start", ["zero", *STARTS])
@pytest.mark.parametrize("rslora", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_result_of_two_stages_is_saved_as_an_adapter_of_the_unchanged_base(
    start, rslora, run_stages, make_rows, tiny_model, reloaded
):
    base = tiny_model.eval()(IDS).logits
    given = {"lora": create_lora(start=start, source="general", rslora=rslora)}
    sources = {"general": make_rows(8, 2)}
    model, logs = run_stages(tiny_model, given, [make_rows(8), make_rows(8, 1)], sources)
    after = model.eval()(IDS).logits
    assert float((after - base).detach().abs().max()) > 1e-2
    assert logs[0][0]["loss"] != logs[0][-1]["loss"]
    loaded = reloaded(model)
    assert torch.allclose(loaded(IDS).logits, after, atol=1e-4)
    with loaded.disable_adapter():
        assert torch.equal(loaded(IDS).logits, base)


def test_dora_is_saved_with_its_magnitudes(run_stages, make_rows, tiny_model, reloaded):
    model, _ = run_stages(tiny_model, {"lora": create_lora(dora=True)}, [make_rows(8)])
    assert torch.allclose(reloaded(model)(IDS).logits, model.eval()(IDS).logits, atol=1e-5)


def test_a_restored_adapter_is_not_initialized_again(tiny_model):
    first = create_lora(start="pissa")
    model = start_first_stage(first, tiny_model)
    restored = create_lora(start="pissa")
    restored.load_state_dict(first.state_dict())
    perturb(model)
    before = {name: weight.clone() for name, weight in model.named_parameters()}
    restored.on_stage_start(Stage("two", ()), model, {}, seed=0)
    assert all(torch.equal(weight, before[name]) for name, weight in model.named_parameters())


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"dora": True, "start": "pissa"}, r"lora\.start: 'pissa' removes a part of the weight"),
        ({"start": "corda"}, r"lora\.source: 'corda' preserves the outputs"),
    ],
)
def test_contradicting_options_are_rejected(options, what):
    with pytest.raises(HarnessError, match=what):
        create_lora(**options).check_compatible({})


@pytest.mark.parametrize("other", ["orthogonal_lora", "merged_lora", "osf", "oft"])
def test_two_adapters_are_rejected_before_anything_is_loaded(other):
    with pytest.raises(HarnessError, match=f"'lora' and '{other}' each add an adapter"):
        create_lora().check_compatible({other: create_lora()})
    create_lora().check_compatible({"lora": create_lora(), "kl": create_lora()})


def test_a_rank_above_that_of_a_weight_is_an_error(tiny_model):
    with pytest.raises(HarnessError, match=r"lora\.rank: rank 20 is higher than that of .*k_proj, 16 x 32"):
        start_first_stage(create_lora(start="pissa", rank=20), tiny_model)


def test_corda_without_rows_is_an_error(tiny_model):
    with pytest.raises(HarnessError, match=r"lora\.source: 'general' has no row"):
        start_first_stage(create_lora(start="corda", source="general"), tiny_model)


def test_a_regular_expression_selects_modules_by_their_full_path(tiny_model):
    model = create_lora(target=r"re:model\.layers\.0\.(mlp|self_attn)\.(up|q)_proj").prepare_model(tiny_model, seed=0)
    adapted = [name for name, module in model.named_modules() if hasattr(module, "lora_A")]
    assert [name.partition("layers.")[2] for name in adapted] == ["0.self_attn.q_proj", "0.mlp.up_proj"]


def test_a_wrong_regular_expression_is_one_line_before_a_model_is_loaded():
    with pytest.raises(HarnessError, match=r"mitigations\.lora\.target: '\(up' is not a regular expression"):
        create_lora(target="re:(up")


def test_a_regular_expression_that_matches_the_head_is_refused(tiny_model):
    with pytest.raises(HarnessError, match="the output head cannot be adapted"):
        create_lora(target="re:.*(q_proj|lm_head)").prepare_model(tiny_model, seed=0)


EXPERTS = ("experts.gate_up_proj", "experts.down_proj")


@pytest.mark.parametrize("name", ["qwen3_moe", "gpt_oss"])
def test_each_stacked_expert_gets_its_own_low_rank_change(name, tokenizer):
    model = build_architecture(name, tokenizer)
    lora = create_lora(rank=2, target=[], parameters=EXPERTS)
    adapted = perturb(lora.prepare_model(model, seed=0)).eval()
    trainable = [path for path, weight in adapted.named_parameters() if weight.requires_grad]
    assert len(trainable) == 2 * 2 * 2  # A and B of two weights of two layers
    assert all(".experts." in path for path in trainable)
    logits = adapted(input_ids=IDS).logits
    with adapted.disable_adapter():
        assert torch.equal(adapted(input_ids=IDS).logits, build_architecture(name, tokenizer)(IDS).logits)
    plain = build_architecture(name, tokenizer)
    for path, layer in frozen_lora.lora_layers(adapted).items():
        path = path.removeprefix("base_model.model.").replace(".base_layer", "")
        experts = layer.num_experts
        factor_a = layer.lora_A["default"].weight.reshape(experts, 2, -1)  # (E, r, k)
        factor_b = layer.lora_B["default"].weight.reshape(-1, 2, experts)  # (d, r, E)
        change = 2 * torch.einsum("dre,erk->edk", factor_b, factor_a)
        weight = getattr(plain.get_submodule(path), layer.parameter_name)
        with torch.no_grad():
            weight += change if change.shape == weight.shape else change.transpose(1, 2)
    torch.testing.assert_close(logits, plain(IDS).logits, rtol=1e-4, atol=1e-4)


def test_experts_and_linear_layers_are_adapted_together(tokenizer):
    lora = create_lora(target=["q_proj"], parameters=["experts.down_proj"])
    layers = frozen_lora.lora_layers(lora.prepare_model(build_architecture("qwen3_moe", tokenizer), seed=0))
    assert {frozen_lora.is_linear(layer) for layer in layers.values()} == {True, False}
    assert len(layers) == 4


@pytest.mark.parametrize(
    ("name", "options", "what"),
    [
        ("qwen3_moe", {"parameters": ["experts.w1"]}, r"no stacked weights .* ends with 'experts.w1'; name some of \["),
        ("llama", {"parameters": ["experts.down_proj"]}, r"'experts.down_proj'; set it to \[\]: the model has none"),
    ],
)
def test_names_that_are_not_those_of_experts_are_refused(name, options, what, tokenizer):
    with pytest.raises(HarnessError, match=rf"^mitigations.lora.parameters: .*{what}"):
        create_lora(**options).prepare_model(build_architecture(name, tokenizer), seed=0)


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"parameters": EXPERTS, "dropout": 0.1}, "parameters: an adapter on the stacked weights .* set dropout to 0"),
        ({"parameters": EXPERTS, "dora": True}, "parameters: an adapter on the stacked weights .* dora to false"),
        ({"target": []}, "target: no layer gets an adapter"),
    ],
)
def test_options_that_experts_do_not_have_are_refused(options, what):
    with pytest.raises(HarnessError, match=rf"^mitigations.lora.{what}"):
        create_lora(**options).check_compatible({})
