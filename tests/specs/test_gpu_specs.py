"""The specs for GPUs fit on the device that they name, and train a tiny model of their architecture as they are."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from safetensors.torch import save_file
from support.architectures import build_architecture

from harness.cli import main

FOLDER = Path(__file__).parents[2] / "specs" / "gpu"

DENSE = {"max_position_embeddings": 32_768, "tie_word_embeddings": False}
LLAMA3_8B = {
    **DENSE, "hidden_size": 4096, "intermediate_size": 14_336, "num_hidden_layers": 32, "num_attention_heads": 32,
    "num_key_value_heads": 8, "vocab_size": 128_256,
}  # fmt: skip
CONFIGS = {
    "llama2_7b_mixed": ("llama", "h200-141", {
        **DENSE, "hidden_size": 4096, "intermediate_size": 11_008, "num_hidden_layers": 32, "num_attention_heads": 32,
        "num_key_value_heads": 32, "vocab_size": 32_000,
    }),
    "llama3_8b_fsdp2_mixed": ("llama", "h100-80", LLAMA3_8B),
    "llama3_8b_qlora_mixed": ("llama", "rtx-4090", LLAMA3_8B),
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
GPUS = {"llama3_8b_fsdp2_mixed": 8}
"""Spec -> the number of devices, if there are several."""


def load(name):
    document = json.loads((FOLDER / f"{name}.json").read_text())
    for source in document["sources"].values():
        source["jsonl"]["path"] = str((FOLDER / source["jsonl"]["path"]).resolve())
    return document


def test_every_spec_is_here():
    assert CONFIGS.keys() == {file.stem for file in FOLDER.glob("*.json")}


@pytest.mark.slow
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
    assert main.main([*command, "--gpus", str(GPUS.get(name, 1))]) == 0
    memory = json.loads(capsys.readouterr().out)["memory"]
    assert memory["fits"] is True
    assert 0.25 * memory["available"] < memory["kinds"]["peak"]
    if name in GPUS:
        assert main.main(command) == 0
        alone = json.loads(capsys.readouterr().out)["memory"]
        assert (alone["fits"], alone["hours"]) == (False, pytest.approx(8 * memory["hours"]))
        whole = [*command, "--gpus", "8", "--set", "train.sharding=null", "--set", "train.gradient_checkpointing=false"]
        assert main.main(whole) == 0
        remedies = json.loads(capsys.readouterr().out)["memory"]["remedies"]
        assert remedies == [["train.gradient_checkpointing=true", 'train.sharding="fsdp2"']]


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
    if name in GPUS:  # two processes on the CPU
        command = [sys.executable, "-m", "harness", "run", str(tmp_path / "spec.json"), "--quiet", "--gpus", "2"]
        subprocess.run(command, check=True, timeout=280)
    else:
        assert main.main(["run", str(tmp_path / "spec.json"), "--quiet"]) == 0
    (report,) = tmp_path.glob("runs/*/report.json")
    assert json.loads(report.read_text())["matrix"] is not None
