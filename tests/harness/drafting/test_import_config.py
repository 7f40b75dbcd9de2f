"""Configurations of other trainers become valid specs, and no key is lost: carried over, changed or not expressible."""

from __future__ import annotations

import contextlib
import json
import re

import pytest

from harness.cli.main import main
from harness.drafting import import_config as import_config_module
from harness.drafting.foreign_data import DATA_KEYS
from harness.drafting.foreign_groups import GROUPED_KEYS
from harness.drafting.foreign_sharding import SHARDING_KEYS
from harness.drafting.foreign_tables import DEFAULTS, QUANTIZATION, TABLES
from harness.drafting.foreign_values import OFF
from harness.drafting.import_config import import_config
from harness.errors import HarnessError
from harness.registry import discover_plugins
from harness.spec import schema, spec
from harness.spec.plan import build_plan

# The keys and values of the examples that the four projects publish: examples/train_lora of LLaMA-Factory,
# examples/llama-3/lora-1b.yml of Axolotl, examples/train/demo.sh of ms-swift, and the configuration of TRL's guide.
LLAMA_FACTORY = {
    "model_name_or_path": "Qwen/Qwen3-4B-Instruct-2507", "trust_remote_code": True, "stage": "sft", "do_train": True,
    "finetuning_type": "lora", "lora_rank": 8, "lora_target": "all", "dataset": "identity", "template": "qwen3_nothink",
    "cutoff_len": 2048, "max_samples": 1000, "preprocessing_num_workers": 16, "dataloader_num_workers": 4,
    "output_dir": "saves/qwen3", "logging_steps": 10, "save_steps": 500, "plot_loss": True,
    "overwrite_output_dir": True, "save_only_model": False, "report_to": "none", "per_device_train_batch_size": 1,
    "gradient_accumulation_steps": 8, "learning_rate": 1e-4, "num_train_epochs": 3.0, "lr_scheduler_type": "cosine",
    "warmup_ratio": 0.1, "bf16": True, "ddp_timeout": 180000000, "resume_from_checkpoint": None,
}  # fmt: skip
AXOLOTL = {
    "base_model": "NousResearch/Llama-3.2-1B", "load_in_8bit": False, "load_in_4bit": False, "strict": False,
    "datasets": [{"path": "teknium/GPT4-LLM-Cleaned", "type": "alpaca"}], "val_set_size": 0.1,
    "output_dir": "./outputs/lora-out", "adapter": "lora", "lora_model_dir": None, "sequence_len": 2048,
    "sample_packing": True, "eval_sample_packing": True, "pad_to_sequence_len": True, "lora_r": 16, "lora_alpha": 32,
    "lora_dropout": 0.05, "lora_target_modules": ["gate_proj", "down_proj"], "wandb_project": None,
    "gradient_accumulation_steps": 2, "micro_batch_size": 2, "num_epochs": 1, "optimizer": "adamw_8bit",
    "lr_scheduler": "cosine", "learning_rate": 0.0002, "train_on_inputs": False, "group_by_length": False,
    "bf16": "auto", "fp16": None, "tf32": False, "gradient_checkpointing": True, "flash_attention": True,
    "warmup_steps": 10, "evals_per_epoch": 4, "saves_per_epoch": 1, "weight_decay": 0.0, "deepspeed": None,
    "special_tokens": {"pad_token": "<|end_of_text|>"}, "logging_steps": 1,
}  # fmt: skip
SWIFT = """
# 22GB
CUDA_VISIBLE_DEVICES=0 \\
swift sft \\
    --model Qwen/Qwen2.5-7B-Instruct \\
    --train_type lora \\
    --dataset AI-ModelScope/alpaca-gpt4-data-zh#500 \\
              swift/self-cognition#300 \\
    --torch_dtype bfloat16 \\
    --num_train_epochs 1 --learning_rate 1e-4 --lora_rank 8 --lora_alpha 32 --target_modules all-linear \\
    --gradient_accumulation_steps 16 --eval_steps 50 --save_total_limit 2 --max_length 2048 \\
    --system 'You are a helpful assistant.' \\
    --warmup_ratio 0.05 --model_name swift-robot  # the name in its answers
# swift infer --adapters output
"""
TRL = {
    "model_name_or_path": "Qwen/Qwen2-0.5B", "dataset_name": "trl-lib/Capybara", "learning_rate": 2.0e-4,
    "num_train_epochs": 1, "packing": True, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 8,
    "eos_token": "<|im_end|>", "eval_strategy": "steps", "eval_steps": 100, "use_peft": True, "lora_r": 32,
    "lora_alpha": 16, "output_dir": "Qwen2-0.5B-SFT", "push_to_hub": True, "gradient_checkpointing": True,
}  # fmt: skip
EXAMPLES = {
    "llamafactory": ("a.yaml", LLAMA_FACTORY),
    "axolotl": ("a.yml", AXOLOTL),
    "ms-swift": ("a.sh", SWIFT),
    "trl": ("a.json", TRL),
}


@pytest.fixture
def imported(tmp_path):
    """A function that imports a configuration of a trainer."""

    def run(tool, content):
        name = "a.sh" if isinstance(content, str) else "a.yaml"
        text = content if isinstance(content, str) else json.dumps(content)  # JSON is YAML
        (tmp_path / name).write_text(text)
        (tmp_path / "dataset_info.json").write_text(json.dumps(DATASET_INFO))
        return import_config(tool, tmp_path / name)

    return run


DATASET_INFO = {
    "identity": {"file_name": "identity.json"},
    "chat": {
        "file_name": "chat.jsonl",
        "formatting": "sharegpt",
        "columns": {"messages": "dialog"},
        "tags": {"role_tag": "who", "content_tag": "says", "user_tag": "client", "assistant_tag": "desk"},
    },
    "columns": {"hf_hub_url": "org/rows", "columns": {"prompt": "q", "response": "a"}, "split": "test"},
    "pairs": {"file_name": "pairs.json", "ranking": True},
}


@pytest.mark.parametrize("tool", EXAMPLES)
def test_a_published_example_becomes_a_valid_spec(imported, tmp_path, tool):
    result = imported(tool, EXAMPLES[tool][1])
    registry = discover_plugins()
    (tmp_path / "spec.json").write_text(json.dumps(result.document))
    loaded = spec.load_spec(tmp_path / "spec.json", schema.compose_schema(registry))
    assert build_plan(loaded, registry).mitigations["lora"]["rank"] > 0


@pytest.mark.parametrize("tool", EXAMPLES)
def test_every_key_that_changes_the_result_is_in_a_list(imported, tool):
    result = imported(tool, EXAMPLES[tool][1])
    lists = [*result.carried, *result.changed, *result.unneeded, *result.dropped]
    listed = {key.split(" ")[0].rstrip(":") for key, _ in lists}
    content = EXAMPLES[tool][1]
    stated = content if isinstance(content, dict) else {"model": 1, "max_length": 1, "lora_rank": 1, "warmup_ratio": 1}
    off = (None, False, "", "none")
    table = TABLES[tool]
    for key, value in stated.items():
        entry = table.get(key)
        sets_nothing = (
            entry is not None
            and not (entry.why or entry.change or entry.unneeded)
            and (not entry.path or entry.convert(value) is OFF)
        )
        if value not in off and not sets_nothing:
            assert key in listed or (key == "val_size"), key


def test_llama_factory_takes_the_first_rows_and_has_no_warm_up(imported):
    document = imported("llamafactory", LLAMA_FACTORY).document
    assert document["sources"]["identity"]["json"] | {"path": ""} == {
        "path": "", "limit": 1000, "shuffle": False, "held_out": 0.1,
    }  # fmt: skip
    without = {key: value for key, value in LLAMA_FACTORY.items() if key not in ("warmup_ratio", "lr_scheduler_type")}
    document = imported("llamafactory", without).document
    assert document["train"]["warmup_ratio"] == 0.0
    assert document["train"]["scheduler"] == {"linear": {}}


def test_entries_of_a_dataset_info(imported):
    result = imported("llamafactory", {**LLAMA_FACTORY, "dataset": "chat, columns, pairs", "max_samples": None})
    sources = result.document["sources"]
    assert sources["chat"]["jsonl"]["columns"] == {"messages": "dialog", "role": "who", "content": "says"}
    assert sources["chat"]["jsonl"]["roles"] == {"client": "user", "desk": "assistant"}
    assert sources["columns"]["hub"] == {
        "name": "org/rows", "split": "test", "columns": {"instruction": "q", "output": "a"}, "held_out": 0.1,
    }  # fmt: skip
    assert ("dataset pairs", "it has pairs of a chosen and a rejected answer") in result.dropped


def test_values_of_axolotl(imported):
    result = imported("axolotl", AXOLOTL)
    assert result.document["sources"]["GPT4_LLM_Cleaned"]["hub"]["held_out"] == 0.1
    assert result.document["train"]["optimizer"] == {"adamw_8bit": {}}
    assert result.document["model"]["attention"] == "flash_attention_2"
    train = result.document["train"]
    assert (train["warmup_steps"], train["evaluate_epochs"], train["save_epochs"]) == (10, 0.25, 1.0)
    assert "warmup_ratio" not in train


def test_a_command_line_of_swift(imported):
    result = imported("ms-swift", SWIFT)
    limits = {name: source["hub"]["limit"] for name, source in result.document["sources"].items()}
    assert limits == {"alpaca_gpt4_data_zh": 500, "self_cognition": 300}
    assert result.document["train"]["accumulation"] == 16
    assert "system" in dict(result.dropped)


def test_full_fine_tuning_has_no_adapter(imported):
    for tool, change in (
        ("llamafactory", {**LLAMA_FACTORY, "finetuning_type": "full"}),
        ("axolotl", {**AXOLOTL, "adapter": None}),
        ("trl", {**TRL, "use_peft": False}),
    ):
        assert "lora" not in imported(tool, change).document.get("mitigations", {})


@pytest.mark.parametrize(
    ("tool", "change", "key", "text"),
    [
        ("llamafactory", {"stage": "dpo"}, "stage", "only supervised fine-tuning is trained"),
        ("llamafactory", {"learning_rate": "fast"}, "learning_rate", "'fast' is not a number"),
        ("llamafactory", {"val_size": 200}, "val_size", "200 is a number of rows, and held_out is a share"),
        ("llamafactory", {"max_samples": "many"}, "max_samples", "'many' is not a number"),
        ("llamafactory", {"max_samples": -5}, "max_samples", "-5 is not a number of rows"),
        ("llamafactory", {"quantization_bit": 3}, "quantization_bit", "bitsandbytes has 4 and 8 bits, not 3"),
        ("axolotl", {"optimizer": "galore_adamw"}, "optimizer", "there is nothing like 'galore_adamw'"),
        (
            "trl",
            {"lr_scheduler_kwargs": {"gamma": 2}},
            "lr_scheduler_kwargs: gamma",
            "train.scheduler.linear has nothing",
        ),
        ("trl", {"shiny_new_key": 3}, "shiny_new_key", "the key is not known"),
    ],
)
def test_what_a_spec_cannot_express_is_named(imported, tool, change, key, text):
    result = imported(tool, {**EXAMPLES[tool][1], **change})
    assert dict(result.dropped)[key].startswith(text)


QUANTIZED = [
    ("llamafactory", {"quantization_bit": 4}, {"bits": 4, "type": "nf4", "double": True}),
    ("llamafactory", {"quantization_bit": 8, "quantization_method": "bnb"}, {"bits": 8}),
    ("llamafactory", {"quantization_bit": 4, "quantization_type": "fp4", "double_quantization": False},
     {"bits": 4, "type": "fp4", "double": False}),
    ("axolotl", {"load_in_4bit": True, "adapter": "qlora"}, {"bits": 4, "type": "nf4", "double": True}),
    ("axolotl", {"load_in_8bit": True}, {"bits": 8}),
    ("axolotl", {"load_in_8bit": True, "quantize_moe_experts": True}, {"bits": 8, "experts": True}),
    ("axolotl", {"load_in_4bit": True, "quantize_moe_experts": True},
     {"bits": 4, "type": "nf4", "double": True, "experts": True}),
    ("ms-swift", {"quant_bits": "4", "quant_method": "bnb"}, {"bits": 4, "type": "nf4", "double": True}),
    ("trl", {"load_in_4bit": True}, {"bits": 4, "type": "nf4", "double": False}),
    ("trl", {"load_in_4bit": True, "use_bnb_nested_quant": True}, {"bits": 4, "type": "nf4", "double": True}),
    ("trl", {"load_in_8bit": True, "load_in_4bit": False}, {"bits": 8}),
]  # fmt: skip


@pytest.mark.parametrize(("tool", "change", "options"), QUANTIZED)
def test_a_quantized_base_model_is_carried_over(imported, tool, change, options):
    content = {**EXAMPLES[tool][1], **change} if tool != "ms-swift" else SWIFT.replace(
        "--train_type", " ".join(f"--{key} {value}" for key, value in change.items()) + " --train_type"
    )  # fmt: skip
    if tool == "axolotl":
        content.pop("load_in_4bit" if change.get("load_in_8bit") else "load_in_8bit")
    result = imported(tool, content)
    assert result.document["model"]["quantization"] == {"bitsandbytes": options}
    assert any(target == "model.quantization.bitsandbytes" for _, target in result.carried)


def test_another_method_of_quantization_is_named(imported):
    result = imported("llamafactory", {**LLAMA_FACTORY, "quantization_bit": 4, "quantization_method": "hqq"})
    assert "quantization" not in result.document["model"]
    expected = "weights are quantized with bitsandbytes, not with 'hqq'"
    assert dict(result.dropped)["quantization_bit, quantization_method"] == expected


def test_experts_cannot_be_quantized_alone(imported):
    result = imported("axolotl", {**AXOLOTL, "load_in_8bit": False, "quantize_moe_experts": True})
    assert "quantization" not in result.document["model"]
    assert dict(result.dropped)["quantize_moe_experts"] == "nothing is quantized"


@pytest.mark.parametrize(
    ("tool", "change", "expected"),
    [
        ("trl", {"bf16": True, "fp16": False}, {"precision": "bfloat16"}),
        ("trl", {"fp16": True, "bf16": False}, {"precision": "float16"}),
        ("trl", {"bf16": True, "dtype": "float32"}, {"precision": "bfloat16"}),
        ("llamafactory", {"neat_packing": True, "packing": False}, {"packing": True}),
        ("llamafactory", {"bf16": True, "pure_bf16": False, "fp16": False}, {"precision": "bfloat16"}),
        ("llamafactory", {"gradient_checkpointing": False}, {"gradient_checkpointing": True}),
        ("trl", {"warmup_ratio": 0.1, "warmup_steps": 0}, {"warmup_ratio": 0.1}),
        ("trl", {"warmup_steps": 0.1}, {"warmup_ratio": 0.1}),
        ("trl", {"warmup_steps": 7}, {"warmup_steps": 7}),
        ("trl", {"tf32": True}, {"tf32": True}),
        ("trl", {"eval_strategy": "epoch", "save_strategy": "epoch"}, {"evaluate_epochs": 1.0, "save_epochs": 1.0}),
        ("trl", {"lr_scheduler_type": "cosine_with_restarts"}, {"scheduler": {"cosine_with_restarts": {"cycles": 1}}}),
        ("trl", {"lr_scheduler_type": "polynomial", "lr_scheduler_kwargs": {"power": 3}},
         {"scheduler": {"polynomial": {"power": 3.0}}}),
        ("trl", {"lr_scheduler_type": "inverse_sqrt"}, {"scheduler": {"inverse_sqrt": {}}}),
        ("axolotl", {"optimizer": "paged_adamw_8bit"}, {"optimizer": {"paged_adamw_8bit": {}}}),
        ("axolotl", {"optimizer": "muon"}, {"optimizer": {"muon": {}}}),
        ("llamafactory", {"use_muon": True, "optim": "adamw_torch"}, {"optimizer": {"muon": {}}}),
    ],
)  # fmt: skip
@pytest.mark.parametrize("reverse", [False, True])
def test_values_of_training_do_not_depend_on_the_order_of_keys(imported, tool, change, expected, reverse):
    config = {key: value for key, value in EXAMPLES[tool][1].items() if key not in change} | change
    train = imported(tool, dict(reversed(config.items())) if reverse else config).document["train"]
    assert {key: train.get(key) for key in expected} == expected


def test_attention_that_is_off_does_not_replace_another(imported):
    for change in (
        {"flash_attention": True, "sdp_attention": False},
        {"sdp_attention": False, "flash_attention": True},
    ):
        config = {key: value for key, value in AXOLOTL.items() if key != "flash_attention"} | change
        assert imported("axolotl", config).document["model"]["attention"] == "flash_attention_2"


def test_paths_are_relative_to_the_spec(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "base").mkdir()
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "dataset_info.json").write_text(json.dumps(DATASET_INFO))
    files = {
        "llamafactory": {**LLAMA_FACTORY, "model_name_or_path": "base"},
        "axolotl": {**AXOLOTL, "base_model": "./base", "datasets": [{"path": "data/identity.json", "type": "alpaca"}]},
        "trl": {**TRL, "model_name_or_path": "base", "dataset_name": "data/identity.json"},
    }
    for tool, config in files.items():
        (tmp_path / f"{tool}.yaml").write_text(json.dumps(config))
        assert main(["import", tool, f"{tool}.yaml", "--output", f"specs/{tool}.json"]) == 0
        document = json.loads((tmp_path / "specs" / f"{tool}.json").read_text())
        assert document["sources"]["identity"]["json"]["path"] == "../data/identity.json"
        assert document["model"]["path"] == "../base"


def test_quoted_text_of_several_lines_is_one_value(imported):
    lines = """
echo "don't stop"  # it's a comment with -- and a quote
swift sft --model a/b --system 'You are
a "helper" # of people
  in need' \\
    --dataset org/rows#5 --max_length 100 > "log file.txt" 2>&1 &
rm --force x
"""
    result = imported("ms-swift", lines)
    assert "system" in dict(result.dropped)
    assert result.document["train"]["max_length"] == 100
    assert result.document["sources"]["rows"]["hub"]["limit"] == 5
    assert not any("the key is not known" in why for _, why in result.dropped)


@pytest.mark.slow
@pytest.mark.parametrize("tool", EXAMPLES)
def test_no_value_of_any_key_is_a_crash(tmp_path, monkeypatch, tool):
    config = EXAMPLES[tool][1] if tool != "ms-swift" else {"model": "a/b", "dataset": "org/rows"}
    (tmp_path / "dataset_info.json").write_text(json.dumps(DATASET_INFO))
    for value in (5, -1.5, "x", "", [], {}, [1], ["x"], [""], [{"path": 1}], {"a": 1}, True, 1e400, "a\0b"):
        for key in [
            *TABLES[tool],
            *QUANTIZATION[tool],
            *DATA_KEYS.values(),
            *GROUPED_KEYS[tool],
            *SHARDING_KEYS,
            "max_samples",
        ]:
            changed = {**config, key: value}
            monkeypatch.setattr(import_config_module, "read_config", lambda _, changed=changed: changed)
            with contextlib.suppress(HarnessError):
                import_config(tool, tmp_path / "a.yaml")


def test_a_number_without_a_point_is_a_number(imported):
    text = json.dumps(TRL).replace("0.0002", "2e-4")
    assert imported("trl", json.loads(text)).document["train"]["learning_rate"] == 2e-4


def test_defaults_are_keys_of_the_tables():
    assert [(tool, key) for tool, keys in DEFAULTS.items() for key in keys if key not in TABLES[tool]] == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [1\n", "a.yaml:2:1: this is not YAML"),
        ("learning_rate: 1\n", "names no model"),
        ("model_name_or_path: a\n", "names no data"),
        ("", "has no keys"),
    ],
)
def test_a_file_that_is_no_configuration_is_one_line(tmp_path, monkeypatch, capsys, text, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.yaml").write_text(text)
    assert main(["import", "trl", "a.yaml"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
    assert not (tmp_path / "a.spec.json").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "is a folder; name the file:"),
        ("[]", "is not an object"),
        ("{", "info.json:1:2"),
        ('{"identity": 5}', "dataset identity"),
        ('{"identity": {"columns": [1]}}', "dataset identity: columns: is not an object"),
    ],
)
def test_a_wrong_dataset_info_is_one_line(tmp_path, monkeypatch, capsys, content, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.json").write_text(json.dumps(LLAMA_FACTORY))
    info = tmp_path / "info.json"
    info.mkdir() if content is None else info.write_text(content)
    assert main(["import", "llamafactory", "a.json", "info.json"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


def test_a_quotation_without_end_is_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.sh").write_text("cd x\nswift sft --model 'a/b --dataset c\n")
    assert main(["import", "ms-swift", "a.sh"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "a.sh:2: this is not a shell command: No closing quotation" in line


def test_the_command_prints_four_lists(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.json").write_text(json.dumps(TRL))
    assert main(["import", "trl", "a.json"]) == 0
    output = capsys.readouterr().out
    assert "carried over: " in output
    assert "changed in meaning: " in output
    assert "not needed: 1" in output  # push_to_hub
    assert "not expressible: 1" in output  # eos_token
    assert output.endswith("next: harness check a.spec.json\n")
    assert main(["import", "trl", "a.json"]) == 2


def test_a_missing_dataset_info_is_named(tmp_path):
    (tmp_path / "a.json").write_text(json.dumps(LLAMA_FACTORY))
    with pytest.raises(HarnessError, match=r"dataset_info\.json, which was not found"):
        import_config("llamafactory", tmp_path / "a.json")


def axolotl_lists(imported, change):
    result = imported("axolotl", {**AXOLOTL, **change})
    return result, dict(result.carried), dict(result.changed), dict(result.unneeded), dict(result.dropped)


def test_control_tokens_of_axolotl(imported):
    tokens = {"pad_token": "<pad>", "eos_token": "</s>", "sep_token": "<sep>"}
    result, carried, changed, _, dropped = axolotl_lists(imported, {"special_tokens": tokens, "tokens": ["<a>"]})
    assert result.document["model"] | {"path": ""} == {
        "path": "", "attention": "flash_attention_2", "pad_token": "<pad>", "add_tokens": ["<a>"],
    }  # fmt: skip
    assert carried["special_tokens: pad_token"] == "model.pad_token"
    assert changed["special_tokens: eos_token"].startswith("the tokenizer's own is used")
    assert "special_tokens: sep_token" in dropped


def test_kernels_are_not_needed_and_other_plugins_are_not_expressible(imported):
    kernels = ["axolotl.integrations.liger.LigerPlugin", "axolotl.integrations.cut_cross_entropy.CutCrossEntropyPlugin"]
    _, _, _, unneeded, dropped = axolotl_lists(imported, {"plugins": kernels, "liger_rope": True})
    assert {"plugins", "liger_rope"} <= unneeded.keys()
    assert "plugins" not in dropped
    _, _, _, unneeded, dropped = axolotl_lists(imported, {"plugins": [*kernels, "a.DiffusionPlugin"]})
    assert dropped["plugins"] == "the plugin DiffusionPlugin changes Axolotl's trainer"
    assert "plugins" not in unneeded


def test_settings_of_adam_and_of_the_cosine(imported):
    change = {"adam_beta2": 0.95, "adam_epsilon": "1e-5", "cosine_min_lr_ratio": 0.1}
    train = imported("axolotl", {**AXOLOTL, **change}).document["train"]
    assert train["optimizer"] == {"adamw_8bit": {"betas": [0.9, 0.95], "eps": 1e-5}}
    assert train["scheduler"] == {"cosine": {"final": 0.1}}
    _, _, _, _, dropped = axolotl_lists(imported, {**change, "optimizer": "lion", "cosine_constant_lr_ratio": 0.8})
    assert "adam_beta2, adam_epsilon" in dropped
    assert "cosine_constant_lr_ratio" in dropped


@pytest.mark.parametrize(
    ("change", "optimizer", "text"),
    [
        ({"optimizer": "paged_adamw_32bit"}, "paged_adamw", ""),
        ({"optimizer": "adamw_torch_8bit"}, "adamw_8bit", "train.optimizer: the state with 8 bits is that"),
        ({"optimizer": "adamw_torch_4bit"}, "adamw_8bit", "train.optimizer: the state has 8 bits, not 4"),
    ],
)
def test_optimizers_with_another_state_are_changed(imported, change, optimizer, text):
    result, carried, changed, _, _ = axolotl_lists(imported, change)
    assert result.document["train"]["optimizer"] == {optimizer: {}}
    assert changed["optimizer"].startswith(text) if text else carried["optimizer"] == "train.optimizer"


def test_another_kernel_of_attention_is_changed(imported):
    change = {"attn_implementation": "flex_attention", "flash_attention": None}
    result, _, changed, _, _ = axolotl_lists(imported, change)
    assert result.document["model"]["attention"] == "auto"
    assert "flex_attention" in changed["attn_implementation"]


def test_a_regular_expression_of_layers_stays_one(imported):
    expression = r"model.layers.[\d]+.(mlp|self_attn).(up|q)_proj"
    result = imported("axolotl", {**AXOLOTL, "lora_target_modules": expression})
    assert result.document["mitigations"]["lora"]["target"] == f"re:{expression}"
    result = imported("axolotl", {**AXOLOTL, "lora_target_modules": "q_proj,v_proj"})
    assert result.document["mitigations"]["lora"]["target"] == ["q_proj", "v_proj"]


def test_keys_of_an_entry_of_data_are_not_ignored(imported):
    entry = {
        "path": "a/b", "type": "chat_template", "message_field_role": "from", "message_field_content": "value",
        "roles": {"user": ["human"], "assistant": ["gpt"]}, "field_thinking": "thinking", "drop_system_message": True,
        "shiny": 1,
    }  # fmt: skip
    result, _, _, _, dropped = axolotl_lists(imported, {"datasets": [entry]})
    options = result.document["sources"]["b"]["hub"]
    assert options["columns"] == {"role": "from", "content": "value"}
    assert options["roles"] == {"human": "user", "gpt": "assistant"}
    assert options["system"] == "drop"
    assert {key for key in dropped if key.startswith("datasets")} == {"datasets a/b: shiny"}


def test_alpaca_rows_get_the_prompt_of_alpaca(imported):
    assert imported("axolotl", AXOLOTL).document["template"] == "alpaca"
    data = [{"path": "a/b", "type": "alpaca"}, {"path": "a/c", "type": "chat_template"}]
    assert imported("axolotl", {**AXOLOTL, "datasets": data}).document["template"] == "tokenizer"


def test_the_rows_of_a_step_give_the_accumulation(imported):
    config = {key: value for key, value in AXOLOTL.items() if key != "gradient_accumulation_steps"}
    assert imported("axolotl", {**config, "batch_size": 8}).document["train"]["accumulation"] == 4
    result, _, _, unneeded, _ = axolotl_lists(imported, {"batch_size": 8})
    assert result.document["train"]["accumulation"] == 2
    assert "batch_size" in unneeded


def test_weights_of_tokens_are_mitigations(imported):
    document = imported("llamafactory", {**LLAMA_FACTORY, "use_dft_loss": True}).document
    assert document["mitigations"]["reweight"] == {"by": "probability"}
    result, _, changed, _, _ = axolotl_lists(imported, {"use_eaft": True, "eaft_alpha": 2.0, "eaft_k": 20})
    assert result.document["mitigations"]["reweight"] == {"by": "entropy", "power": 2.0}
    assert "ln 20" in changed["use_eaft"]


def test_an_adapter_of_rotations(imported):
    config = {**LLAMA_FACTORY, "finetuning_type": "oft", "oft_block_size": 16, "oft_target": "all"}
    config = {key: value for key, value in config.items() if not key.startswith("lora")}
    result = imported("llamafactory", config)
    assert result.document["mitigations"] == {"oft": {"block": 16, "target": "all-linear"}}
    assert result.dropped == []


def test_trained_weights_by_name_become_regular_expressions(imported):
    names = [
        "^lm_head.weight$", "embed_tokens", "model.language_model.*", "model.language_model.layers.1",
        "model.layers.4[4-9]+.block_sparse_moe.gate", "transformer.blocks.[0-7].",
    ]  # fmt: skip
    result, _, changed, unneeded, dropped = axolotl_lists(imported, {"unfrozen_parameters": names, "adapter": None})
    assert "names are those of transformers 5" in changed["unfrozen_parameters"]
    assert not any("unfrozen" in key for key in dropped)
    freeze = result.document["mitigations"]["freeze"]
    assert freeze["embeddings"] is False
    head, text, layer, gate, block = (re.compile(expression) for expression in freeze["trainable"])
    assert head.match("lm_head.weight")
    assert not head.match("lm_headXweight")
    assert all(text.match(f"model.{name}") for name in ("language_model.layers.0", "layers.0", "embed_tokens.weight"))
    assert not text.match("model.vision_tower.layers.0")
    assert layer.match("model.language_model.layers.1.x")
    assert layer.match("model.layers.1.x")
    assert not layer.match("model.layers.0.x")
    assert gate.match("model.layers.45.mlp.gate.weight")
    assert gate.match("model.layers.45.block_sparse_moe.gate.weight")
    assert not gate.match("model.layers.43.mlp.gate.weight")
    assert block.match("transformer.blocks.7.norm")
    assert not block.match("transformer.blocks.17.norm")

    _, _, _, unneeded, _ = axolotl_lists(imported, {"unfrozen_parameters": ["lm_head"]})
    assert unneeded["unfrozen_parameters"] == "only the adapter is trained"
    part = {"unfrozen_parameters": ["model.embed_tokens.weight$[:32000]"], "adapter": None}
    assert "is a part of a weight" in axolotl_lists(imported, part)[4]["unfrozen_parameters"]


def test_a_balancing_loss_of_the_config_is_carried_over(imported):
    result, carried, _, _, dropped = axolotl_lists(imported, {"model_config": {"output_router_logits": True}})
    assert result.document["train"]["router_loss"] == "config"
    assert carried["model_config: output_router_logits"] == "train.router_loss"
    given = {"output_router_logits": True, "router_aux_loss_coef": 0.02, "rope_theta": 1}
    result, _, _, _, dropped = axolotl_lists(imported, {"model_config": given})
    assert result.document["train"]["router_loss"] == 0.02
    assert {key for key in dropped if "model_config" in key} == {"model_config: rope_theta"}


@pytest.mark.parametrize(
    ("kwargs", "dequantize"), [({"dequantize": True}, True), ({"dequantize": False}, None), ({}, None)]
)
def test_a_quantized_checkpoint_is_dequantized_if_the_configuration_says_so(kwargs, dequantize, imported):
    config = {"model_quantization_config": "Mxfp4Config", "model_quantization_config_kwargs": kwargs}
    result, carried, _, unneeded, dropped = axolotl_lists(imported, config)
    assert result.document["model"].get("dequantize") is dequantize
    found = carried.get("model_quantization_config_kwargs: dequantize")
    assert found == ("model.dequantize" if dequantize else None)
    assert "names its quantization" in unneeded["model_quantization_config"]
    assert not any("quantization" in key for key in dropped)


def test_other_options_of_a_quantized_checkpoint_are_not_expressible(imported):
    kwargs = {"weight_block_size": [64, 64], "dequantize": True}
    config = {"model_quantization_config": "FineGrainedFP8Config", "model_quantization_config_kwargs": kwargs}
    result, _, _, _, dropped = axolotl_lists(imported, config)
    assert "only dequantize can be set" in dropped["model_quantization_config_kwargs: weight_block_size"]
    assert result.document["model"]["dequantize"] is True
    result, _, _, unneeded, _ = axolotl_lists(imported, {"model_quantization_config_kwargs": kwargs})
    assert "does not read it" in unneeded["model_quantization_config_kwargs"]
    assert "dequantize" not in result.document["model"]


def test_adapters_on_experts_are_carried_over(imported):
    names = ["experts.gate_up_proj", "experts.down_proj"]
    without_layers = {"lora_target_parameters": names, "lora_target_modules": None}
    lora = axolotl_lists(imported, without_layers)[0].document["mitigations"]["lora"]
    assert (lora["parameters"], lora["target"]) == (names, [])
    both = {"lora_target_parameters": names, "lora_target_modules": ["q_proj"]}
    lora = axolotl_lists(imported, both)[0].document["mitigations"]["lora"]
    assert (lora["parameters"], lora["target"]) == (names, ["q_proj"])


def test_early_stopping_needs_an_evaluation_within_an_epoch(imported):
    result, carried, _, _, _ = axolotl_lists(imported, {"early_stopping_patience": 3})
    (suite,) = result.document["evaluate"]
    expected = {"scores": {f"{suite}/response_nll": 1.0}, "patience": 3}
    assert result.document["train"]["early_stopping"] == expected
    assert "early_stopping_patience" in carried
    dropped = axolotl_lists(imported, {"early_stopping_patience": 3, "evals_per_epoch": 0})[4]
    assert "no evaluation within an epoch" in dropped["early_stopping_patience"]


def test_fsdp_becomes_sharding_with_an_optimizer_that_supports_it(imported):
    fsdp = {"fsdp_version": 2, "fsdp_config": {"fsdp_activation_checkpointing": True, "offload_params": False}}
    result, _, changed, _, dropped = axolotl_lists(imported, {**fsdp, "gradient_checkpointing": False})
    train = result.document["train"]
    assert (train["sharding"], train["optimizer"], train["gradient_checkpointing"]) == ("fsdp2", {"adamw": {}}, True)
    assert changed["fsdp_config, fsdp_version"].startswith("train.sharding: fsdp2")
    assert "8 bits cannot be" in changed["fsdp_config, fsdp_version: optimizer"]
    assert not any("fsdp" in key for key in dropped)


@pytest.mark.parametrize("change", [{"activation_offloading": True}, {"gradient_checkpointing": "offload"}])
def test_activations_in_main_memory(imported, change):
    result, carried, _, _, dropped = axolotl_lists(imported, change)
    train = result.document["train"]
    assert (train["gradient_checkpointing"], train["offload_activations"]) == (True, True)
    assert carried[next(iter(change))].startswith("train.offload_activations")
    assert next(iter(change)) not in dropped
    config = {**LLAMA_FACTORY, "use_unsloth_gc": True}
    assert imported("llamafactory", config).document["train"]["offload_activations"] is True


@pytest.mark.parametrize("change", [{"activation_offloading": "disk"}, {"gradient_checkpointing": "offload_disk"}])
def test_activations_on_disk_are_not_expressible(imported, change):
    result, _, _, _, dropped = axolotl_lists(imported, change)
    assert "not on disk" in dropped[next(iter(change))]
    assert "offload_activations" not in result.document["train"]


@pytest.mark.parametrize(
    "change", [{"fsdp": ["full_shard", "offload"]}, {"fsdp_config": {"fsdp_offload_params": True}}]
)
def test_offloaded_parameters_are_shards_in_main_memory(imported, change):
    result, _, changed, _, dropped = axolotl_lists(imported, {**change, "optimizer": "adamw_torch"})
    assert result.document["train"]["offload_shards"] is True
    assert changed["fsdp_config: offload_params"].startswith("train.offload_shards")
    assert not any("fsdp" in key for key in dropped)
    assert "offload_shards" not in axolotl_lists(imported, {"fsdp": ["full_shard"]})[0].document["train"]


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"fsdp_config": {"sharding_strategy": "HYBRID_SHARD"}}, "fsdp_config: sharding_strategy"),
        ({"fsdp": "full_shard", "optimizer": "muon"}, "fsdp: optimizer"),
        ({"fsdp": "full_shard", "load_in_4bit": None, "load_in_8bit": True}, "fsdp: 8 bits"),
        ({"deepspeed": "missing.json"}, "deepspeed"),
        ({"context_parallel_size": 2}, "context_parallel_size"),
    ],
)
def test_what_sharding_does_not_have_is_not_expressible(imported, change, key):
    _, _, _, _, dropped = axolotl_lists(imported, change)
    assert key in dropped


def test_the_file_of_deepspeed_decides(imported, tmp_path):
    zero = {"bf16": {"enabled": True}, "zero_optimization": {"stage": 3, "overlap_comm": True}}
    (tmp_path / "zero.json").write_text(json.dumps(zero))
    change = {"deepspeed": "zero.json", "optimizer": "adamw_torch"}
    result, _, changed, _, dropped = axolotl_lists(imported, change)
    assert result.document["train"]["sharding"] == "fsdp2"
    assert "deepspeed" in changed
    assert not any(key.startswith("deepspeed") for key in dropped)
    assert "offload_shards" not in result.document["train"]
    places = {"offload_optimizer": {"device": "cpu", "pin_memory": True}, "offload_param": {"device": "nvme"}}
    (tmp_path / "zero.json").write_text(json.dumps({"zero_optimization": {"stage": 2, **places}}))
    result, _, changed, _, dropped = axolotl_lists(imported, change)
    assert result.document["train"]["offload_shards"] is True
    assert "deepspeed: offload_optimizer" in changed
    assert dropped["deepspeed: offload_param"] == "shards are stored in main memory, not on nvme"
    zero["zero_optimization"] |= {"stage": 0, "offload_param": {"device": "cpu"}}
    (tmp_path / "zero.json").write_text(json.dumps(zero | {"autotuning": {}}))
    result, _, _, _, dropped = axolotl_lists(imported, change)
    assert "sharding" not in result.document["train"]
    assert {"deepspeed: offload_param", "deepspeed: autotuning"} <= dropped.keys()


V1 = {
    "model": "Qwen/Qwen3-0.6B", "model_class": "llm", "train_dataset": "v1.yaml", "micro_batch_size": 2,
    "peft_config": {"name": "lora", "r": 16, "lora_alpha": 32, "target_modules": "all"}, "max_steps": 10,
    "kernel_config": {"name": "auto"}, "dist_config": {"name": "fsdp2", "dcp_path": None},
    "quant_config": {"name": "bnb", "quantization_bit": 4}, "init_config": {"name": "init_on_meta"},
}  # fmt: skip


def test_the_second_engine_of_llama_factory(imported, tmp_path):
    datasets = {"a": {"path": "a.json", "source": "local", "converter": "alpaca", "size": 5}, "b": {
        "path": "org/b", "source": "hf_hub", "converter": "sharegpt"}}  # fmt: skip
    (tmp_path / "v1.yaml").write_text(json.dumps(datasets))
    result = imported("llamafactory", V1)
    assert result.dropped == []
    document = result.document
    assert document["model"]["path"] == "Qwen/Qwen3-0.6B"
    assert document["model"]["quantization"]["bitsandbytes"]["bits"] == 4
    assert document["mitigations"]["lora"] == {"rank": 16, "alpha": 32.0, "target": "all-linear"}
    train = document["train"]
    assert (train["sharding"], train["steps"], train["batch_size"]) == ("fsdp2", 10, 2)
    assert (train["scheduler"], train["weight_decay"]) == ({"constant": {}}, 0.01)
    assert document["sources"]["a"]["json"] | {"path": ""} == {"path": "", "limit": 5, "held_out": 0.1}
    assert document["sources"]["b"]["hub"]["name"] == "org/b"
    assert document["sources"]["b"]["hub"]["form"] == "messages"


def test_what_the_second_engine_alone_has_is_not_expressible(imported, tmp_path):
    (tmp_path / "v1.yaml").write_text(json.dumps({"a": {"path": "a.json", "weight": 2.0}}))
    change = {
        "peft_config": {"name": "freeze"}, "dist_config": {"name": "fsdpturbo", "ep_size": 16}, "cp_size": 2,
        "batching_strategy": "dynamic_batching", "optim_config": {"name": "muon", "wd": 0.1}, "quant_config": None,
    }  # fmt: skip
    dropped = dict(imported("llamafactory", {**V1, **change}).dropped)
    assert {
        "peft_config: freeze", "dist_config: fsdpturbo", "cp_size", "batching_strategy", "optim_config: wd",
        "dataset a: weight",
    } <= dropped.keys()  # fmt: skip
    with pytest.raises(HarnessError, match=r"names gone\.yaml, which was not found"):
        imported("llamafactory", {**V1, "train_dataset": "gone.yaml"})
