"""Adapters are added to linear layers; what looks like one and is not is left out or refused."""

from __future__ import annotations

import json
import re

import pytest
import torch
from harness_mitigations import adapter_common, linear_layers
from peft import LoraConfig
from support.architectures import build_architecture

from harness.errors import HarnessError
from harness.model import frozen_lora
from harness.model.load import load_model
from harness.model.locate import resolve_model
from harness.registry import discover_plugins
from harness.types import Stage

IDS = torch.tensor([[5, 6, 7, 8]])


def create(name, **options):
    """Return a mitigation with the defaults of its declaration."""
    registry = discover_plugins()
    declared = registry.get("mitigations", name).options
    defaults = {key: option["default"] for key, option in declared.items() if "default" in option}
    return registry.create("mitigations", name, defaults | options)


def add_lora(model, target="all-linear"):
    config = LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=target)
    return adapter_common.add_adapter("lora", model, config, seed=0)


@pytest.mark.parametrize("name", ["llama4", "phimoe"])
def test_all_linear_leaves_out_routers(name, tokenizer):
    model = build_architecture(name, tokenizer)
    before = model(IDS).logits
    adapted = add_lora(model)
    assert not any("router" in path for path in frozen_lora.lora_layers(adapted))
    assert torch.allclose(adapted(input_ids=IDS).logits, before, atol=1e-5)


def test_router_as_target_is_refused(tokenizer):
    what = r"^mitigations.lora.target: the layer .*router, a Llama4Router, does not return a linear .*; remove 'router'"
    with pytest.raises(HarnessError, match=what):
        add_lora(build_architecture("llama4", tokenizer), ["q_proj", "router"])


@pytest.mark.parametrize("name", ["llama", "falcon", "gpt2", "mixtral"])
def test_ordinary_linear_layers_are_regular(name, tokenizer):
    assert linear_layers.find_irregular_linear_layers(build_architecture(name, tokenizer)) == []


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mixtral", "qwen3_moe", "glm4_moe"])
@pytest.mark.parametrize("mitigation", ["orthogonal_lora", "lora.start", "wise_ft", "ewc", "l2sp"])
def test_fused_experts_are_refused_where_linear_layers_are_needed(name, mitigation, tokenizer, make_rows):
    def start(target):
        model = build_architecture(name, tokenizer)
        if mitigation == "orthogonal_lora":
            return create("orthogonal_lora", target=target).prepare_model(model, seed=0)
        if mitigation == "lora.start":
            return create("lora", target=target, start="pissa").prepare_model(model, seed=0)
        model = create("lora", target=target).prepare_model(model, seed=0)
        options = {"source": "general", "cache": False} if mitigation == "ewc" else {}
        create(mitigation, **options).on_stage_start(Stage("one", ()), model, {"general": make_rows(2)}, seed=0)
        return model

    with pytest.raises(HarnessError, match=rf"^mitigations.{mitigation}: it needs adapters on linear layers") as caught:
        start("all-linear")
    adapter = "orthogonal_lora" if mitigation == "orthogonal_lora" else "lora"
    target = re.fullmatch(rf"set mitigations.{adapter}.target to (\[.*\])", caught.value.hint).group(1)
    assert frozen_lora.lora_layers(start(json.loads(target))), "the hint is a target that is accepted"


@pytest.mark.parametrize("name", ["llama4", "mixtral"])
def test_model_in_16_bits_gets_an_adapter_on_the_same_layers(name, tokenizer, tmp_path):
    build_architecture(name, tokenizer).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    settings = {"path": str(tmp_path), "attention": "auto"}
    layers = [
        list(frozen_lora.lora_layers(add_lora(load_model(resolve_model(settings), settings, precision=precision))))
        for precision in ("float32", "bfloat16")
    ]
    assert layers[0] == layers[1]


@pytest.mark.parametrize("mitigation", ["osf", "oft"])
def test_transposed_weights_are_refused_by_adapters_that_do_not_support_them(mitigation, tokenizer):
    model = build_architecture("gpt2", tokenizer)
    for target in ("all-linear", ["c_proj"]):
        what = rf"^mitigations.{mitigation}: the layer .* is a Conv1D, which '{mitigation}' does not support; replace"
        with pytest.raises(HarnessError, match=what):
            create(mitigation, target=target).prepare_model(model, seed=0)


def test_osf_refuses_module_that_is_not_linear(tiny_model):
    with pytest.raises(HarnessError, match=r"^mitigations.osf.target: 'embed_tokens' is not a linear layer; name some"):
        create("osf", target=["q_proj", "embed_tokens"]).prepare_model(tiny_model, seed=0)


def test_adapter_of_rwkv_is_refused(tokenizer):
    with pytest.raises(
        HarnessError, match=r"^mitigations.lora: plain transformers halves weights of RWKV in evaluation"
    ):
        add_lora(build_architecture("rwkv", tokenizer))


def test_hint_for_mamba_names_layers_that_can_be_adapted(tokenizer):
    model = build_architecture("mamba", tokenizer)
    with pytest.raises(HarnessError, match="incompatible with Mamba") as caught:
        add_lora(model)
    target = re.fullmatch(r"set mitigations.lora.target to (\[.*\])", caught.value.hint).group(1)
    assert frozen_lora.lora_layers(add_lora(build_architecture("mamba", tokenizer), json.loads(target)))
