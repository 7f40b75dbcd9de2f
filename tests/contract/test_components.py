"""The contract of every built-in component, and that the documented ones exist.

Third parties run the same checks on their own components: `harness plugins --check`, or `contract_tests`.
"""

from __future__ import annotations

import torch

from harness import Mitigation, registry
from harness.interfaces import component as component_module
from harness.testing.checks.mitigation import ROWS, STAGE
from harness.testing.contract import contract_tests

BUILT_INS = {
    "templates": {"alpaca", "chatml", "llama2", "instruction_zh", "tokenizer", "jinja"}
    | {"llama3", "mistral", "qwen", "gemma", "phi", "zephyr", "vicuna", "deepseek"},
    "sources": {"json", "jsonl", "csv", "parquet", "arrow", "text", "hub", "lm_eval"},
    "modes": {"general", "domain", "mixed", "continual", "curriculum"},
    "mitigations": {"mixing", "replay", "ewc", "l2sp", "lr_scale", "kl", "token_masking", "freeze", "wise_ft", "ema"}
    | {"reweight", "repair", "self_distill"}
    | {"lora", "orthogonal_lora", "merged_lora", "osf", "oft"},
    "metrics": {"bleu", "rouge", "chrf", "ter", "exact_match", "token_f1", "bertscore", "distinct", "length_ratio"}
    | {"regex", "json_valid", "response_perplexity", "multiple_choice", "bits_per_byte"}
    | {"kl_to_base", "agreement_with_base", "pass_at_k", "instructions", "tool_calls", "classification"}
    | {"lm_eval", "numeric_match", "refusal", "toxicity", "self_bleu"},
    "optimizers": {
        "adamw",
        "adamw_8bit",
        "paged_adamw",
        "paged_adamw_8bit",
        "adafactor",
        "lion",
        "mofo",
        "muon",
        "sgd",
    },
    "schedulers": {"cosine", "linear", "constant", "constant_with_warmup", "wsd", "polynomial", "inverse_sqrt"}
    | {"cosine_with_restarts"},
    "row_formats": {"columns_template"},
    "checks": {"pii"},
    "exporters": {"merged", "gguf", "ollama", "hub", "mlflow"},
    "trackers": {"mlflow", "tensorboard", "wandb"},
}

test_contract = contract_tests("harness-sft")


def test_no_plugin_is_broken_and_every_documented_component_exists():
    plugins = registry.discover_plugins()
    assert plugins.broken_plugins == []
    missing = {kind: names - set(plugins.components[kind]) for kind, names in BUILT_INS.items()}
    assert missing == {kind: set() for kind in registry.INTERFACES}


def test_component_types_equal_those_of_the_interfaces():
    assert tuple(registry.INTERFACES) == component_module.COMPONENT_TYPES


def test_the_defaults_of_a_mitigation_change_nothing():
    plain, model, logits = Mitigation(), torch.nn.Linear(2, 2), torch.zeros(3, 4)
    model.weight.grad = torch.ones(2, 2)
    assert plain.transform_stages((STAGE,)) == (STAGE,)
    assert plain.prepare_model(model, seed=0) is model
    assert plain.on_stage_start(STAGE, model, {}, seed=0) is None
    assert plain.check_compatible({"lora": plain}) is None
    assert plain.check_stage(STAGE) is None
    assert plain.filter_labels(model, {}) is None
    assert plain.extra_loss(model, 1.0) is None
    assert plain.on_step_end(model, 1e-3) is None
    assert list(plain.variants(model)) == []
    assert plain.stage_stats() == {}
    assert plain.on_evaluation(STAGE, model, {}) == {}
    assert plain.monitored_suites == ()
    assert plain.penalty_timing == "after_clip"
    assert plain.add_weight_penalty(model) is None
    assert plain.token_penalty(model, {}) is None
    assert plain.batch_penalty(model, {}, logits) is None
    assert plain.on_stage_end(STAGE, model, ROWS) is None
    assert plain.state_dict() == {}
    assert plain.load_state_dict({}) is None
    assert torch.equal(model.weight.grad, torch.ones(2, 2))
    assert plain.requires_logits is False
