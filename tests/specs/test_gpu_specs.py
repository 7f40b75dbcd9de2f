"""The specs for GPUs fit on the device that they name, and train a tiny model of their architecture as they are."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path

import pytest
from safetensors.torch import save_file
from support.architectures import build_architecture

from harness.cli import main

FOLDER = Path(__file__).parents[2] / "specs" / "gpu"

DENSE = {"max_position_embeddings": 32_768, "tie_word_embeddings": False}
CONFIGS = {
    "llama2_7b_mixed": ("llama", "h200-141", {
        **DENSE, "hidden_size": 4096, "intermediate_size": 11_008, "num_hidden_layers": 32, "num_attention_heads": 32,
        "num_key_value_heads": 32, "vocab_size": 32_000,
    }),
    "llama3_8b_qlora_mixed": ("llama", "rtx-4090", {
        **DENSE, "hidden_size": 4096, "intermediate_size": 14_336, "num_hidden_layers": 32, "num_attention_heads": 32,
        "num_key_value_heads": 8, "vocab_size": 128_256,
    }),
    "qwen2_7b_lora_mixed": ("qwen2", "a100-40", {
        **DENSE, "hidden_size": 3584, "intermediate_size": 18_944, "num_hidden_layers": 28, "num_attention_heads": 28,
        "num_key_value_heads": 4, "vocab_size": 152_064,
    }),
    "qwen3_moe_lora_mixed": ("qwen3_moe", "h100-80", {
        **DENSE, "hidden_size": 2048, "intermediate_size": 6144, "moe_intermediate_size": 768, "num_hidden_layers": 48,
        "num_attention_heads": 32, "num_key_value_heads": 4, "head_dim": 128, "num_experts": 128,
        "num_experts_per_tok": 8, "vocab_size": 151_936,
    }),
}  # fmt: skip
"""Spec -> the model type, the device, and the sizes of the published config."""


def load(name):
    document = json.loads((FOLDER / f"{name}.json").read_text())
    for source in document["sources"].values():
        source["jsonl"]["path"] = str((FOLDER / source["jsonl"]["path"]).resolve())
    return document


def test_every_spec_is_here():
    assert CONFIGS.keys() == {file.stem for file in FOLDER.glob("*.json")}


@pytest.mark.parametrize("name", CONFIGS)
def test_spec_fits_on_its_device(name, tokenizer, tmp_path, capsys):
    import torch
    from transformers import AutoConfig

    model_type, device, sizes = CONFIGS[name]
    AutoConfig.for_model(model_type, **sizes, dtype="bfloat16").save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    save_file({"empty": torch.zeros(1)}, tmp_path / "model" / "model.safetensors")  # a plan reads no weights
    file = FOLDER / f"{name}.json"
    command = ["plan", str(file), "--json", "--device", device, "--set", f"model.path={tmp_path / 'model'}"]
    assert main.main(command) == 0
    memory = json.loads(capsys.readouterr().out)["memory"]
    if model_type == "qwen3_moe":  # which experts a token takes is not known without weights
        assert (memory["fits"], memory["kinds"]) == (None, None)
        assert 0.5 * memory["available"] < memory["bytes"] < memory["available"]
        return
    assert memory["fits"] is True
    assert 0.25 * memory["available"] < memory["kinds"]["peak"]


@pytest.mark.slow
@pytest.mark.parametrize("name", CONFIGS)
def test_spec_trains_a_tiny_model(name, tokenizer, tmp_path, monkeypatch):
    document = load(name)
    if document["model"].get("quantization") and find_spec("bitsandbytes") is None:
        pytest.skip("bitsandbytes is not installed")
    monkeypatch.chdir(tmp_path)
    build_architecture(CONFIGS[name][0], tokenizer).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    document["model"]["path"] = str(tmp_path / "model")
    document["train"] |= {"steps": 2, "max_length": 512, "accumulation": 2}
    for suite in document["evaluate"].values():
        suite |= {"metrics": {"response_perplexity": {}}, "limit": 8}
    document |= {"output": str(tmp_path / "runs"), "track": {"enabled": False}}
    del document["$schema"]
    (tmp_path / "spec.json").write_text(json.dumps(document))
    assert main.main(["run", str(tmp_path / "spec.json"), "--quiet"]) == 0
    (report,) = tmp_path.glob("runs/*/report.json")
    assert json.loads(report.read_text())["matrix"] is not None
