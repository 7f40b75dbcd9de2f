"""The count of configurations: what is in scope, and what blocks."""

from __future__ import annotations

import importlib.util
import json
import sys

import pytest
from support.paths import ROOT

SPEC = importlib.util.spec_from_file_location("count_configs", ROOT / "benchmarks" / "count_configs.py")
count_configs = importlib.util.module_from_spec(SPEC)
sys.modules[SPEC.name] = count_configs  # dataclasses look their module up
SPEC.loader.exec_module(count_configs)

AXOLOTL = {"base_model": "org/model", "datasets": [{"path": "org/rows", "type": "chat_template"}]}
LLAMA_FACTORY = {"model_name_or_path": "org/model", "stage": "sft", "do_train": True, "dataset": "rows"}
DATASETS = {"rows": {"file_name": "a.json"}, "pictures": {"file_name": "b.json", "columns": {"images": "images"}}}


@pytest.mark.parametrize(
    ("tool", "config", "name", "reason"),
    [
        ("axolotl", AXOLOTL, "a.yml", ""),
        ("axolotl", {**AXOLOTL, "rl": "dpo"}, "a.yml", "preferences, rewards or reinforcement"),
        ("axolotl", {**AXOLOTL, "reward_model": True}, "a.yml", "preferences, rewards or reinforcement"),
        ("axolotl", {**AXOLOTL, "processor_type": "AutoProcessor"}, "a.yml", "images or audio"),
        ("axolotl", AXOLOTL, "llava/lora.yml", "images or audio"),
        ("axolotl", {"base_model": "m", "pretraining_dataset": [{"path": "a"}]}, "a.yml", "pretraining"),
        ("axolotl", {"gpu": "h100"}, "a.yml", "no training"),
        ("llamafactory", LLAMA_FACTORY, "a.yaml", ""),
        ("llamafactory", {**LLAMA_FACTORY, "stage": "kto"}, "a.yaml", "preferences, rewards or reinforcement"),
        ("llamafactory", {**LLAMA_FACTORY, "stage": "pt"}, "a.yaml", "pretraining"),
        ("llamafactory", {**LLAMA_FACTORY, "dataset": "rows, pictures"}, "a.yaml", "images or audio"),
        ("llamafactory", {"model_name_or_path": "m", "template": "qwen"}, "a.yaml", "no training"),
    ],
)
def test_only_supervised_training_on_text_is_in_scope(tmp_path, tool, config, name, reason):
    (tmp_path / "dataset_info.json").write_text(json.dumps(DATASETS))
    assert count_configs.why_out_of_scope(tool, config, name, tmp_path / "dataset_info.json") == reason


def test_a_file_is_counted_once_with_all_keys_that_block_it(tmp_path, capsys, monkeypatch):
    configs = {
        "good.yml": AXOLOTL,
        "plain.yaml": {**AXOLOTL, "shiny": 1},
        "two.yml": {**AXOLOTL, "shiny": 1, "relora": True},
        "invalid.yml": {**AXOLOTL, "lora_dropout": 2.0, "adapter": "lora"},
        "dpo.yml": {**AXOLOTL, "rl": "dpo"},
    }
    (tmp_path / "configs").mkdir()
    for name, config in configs.items():
        (tmp_path / "configs" / name).write_text(json.dumps(config))
    arguments = ["axolotl", str(tmp_path / "configs"), "--json", str(tmp_path / "counted.json")]
    monkeypatch.setattr(sys, "argv", ["count_configs.py", *arguments])
    count_configs.main()
    lines = capsys.readouterr().out.splitlines()
    assert "| axolotl | 5 | 4 | 1 | 25% |" in lines
    assert "| preferences, rewards or reinforcement | 1 |" in lines
    assert "| `shiny` | 2 | 1 |" in lines
    assert "| `relora` | 1 | 0 |" in lines
    counted = {entry["file"]: entry for entry in json.loads((tmp_path / "counted.json").read_text())}
    assert counted["good.yml"]["blocking"] == []
    ((key, why),) = counted["invalid.yml"]["blocking"]  # the spec is not valid
    assert (key, "2.0" in why) == ("the file", True)
