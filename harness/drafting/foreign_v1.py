"""Configurations of LLaMA-Factory's second engine (`llamafactory.v1`) as those of its first one.

They have a mapping for each plugin (`peft_config`, `dist_config`), and name a YAML file of data sets.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from harness.drafting.foreign_config import read_config
from harness.errors import HarnessError

RENAMED = {"model": "model_name_or_path", "micro_batch_size": "per_device_train_batch_size"}
DEFAULTS = {
    "learning_rate": 1e-4, "num_train_epochs": 3, "per_device_train_batch_size": 1, "lr_scheduler_type": "constant",
    "bf16": True, "finetuning_type": "full", "weight_decay": 0.01,
}  # fmt: skip
"""The defaults that differ from those of the first engine."""
LORA_KEYS = {
    "r": "lora_rank",
    "lora_alpha": "lora_alpha",
    "lora_dropout": "lora_dropout",
    "target_modules": "lora_target",
}
INIT_NAMES = ("init_on_rank0", "init_on_meta", "init_on_default")
"""How weights are loaded; the result is the same."""


def is_v1(config: Mapping[str, Any]) -> bool:
    """Return whether a configuration is one of the second engine."""
    return "train_dataset" in config and "model_name_or_path" not in config


def to_first_engine(config: Mapping[str, Any], file: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the configuration with the keys of the first engine, and its data sets as a dataset_info.json has them.

    A key without a counterpart stays as it is, so that it is listed as not known.

    Raises:
        HarnessError: The file of data sets was not found.
    """
    plugins = ("peft_config", "dist_config", "quant_config", "kernel_config", "init_config", "optim_config")
    result = {RENAMED.get(key, key): value for key, value in config.items() if key not in (*plugins, "train_dataset")}
    result = {**DEFAULTS, "template": "default", **result}
    parts = {key: dict(config[key]) for key in plugins if isinstance(config.get(key), Mapping)}
    for key, part in parts.items():
        name = part.pop("name", None)
        if key == "peft_config" and name == "lora":
            result |= {"finetuning_type": "lora"}
            result |= {LORA_KEYS.get(option, f"peft_config: {option}"): value for option, value in part.items()}
        elif key == "dist_config" and name == "fsdp2" and not part.get("dcp_path"):
            result["fsdp"] = "full_shard"
        elif key == "dist_config" and name == "deepspeed":
            result["deepspeed"] = part.get("config_file")
        elif key == "quant_config" and name == "bnb":
            result |= {"quantization_method": "bnb", **part}
        elif key == "kernel_config" and set(part) <= {"include_kernels"}:
            result["enable_liger_kernel"] = True
        elif key == "optim_config" and name == "muon":
            result |= {"use_muon": True} | {f"optim_config: {option}": value for option, value in part.items()}
        elif not (key == "init_config" and name in INIT_NAMES):
            result[f"{key}: {name}"] = part or True
    entries = _read_datasets(str(config["train_dataset"]), file)
    result["dataset"] = ",".join(entries)
    return result, entries


def _read_datasets(named: str, file: Path) -> dict[str, Any]:
    """Return the data sets of a YAML file as entries of a dataset_info.json."""
    candidates = [Path(named), *(folder / named for folder in file.resolve().parents)]
    path = next((path for path in candidates if path.is_file()), None)
    if path is None:
        raise HarnessError(
            str(file), f"names {named}, which was not found", "start in the folder that it is relative to"
        )
    entries: dict[str, Any] = {}
    for name, entry in read_config(path).items():
        if not isinstance(entry, Mapping) or not entry.get("path"):
            raise HarnessError(f"{path}: {name}", "has no path", "write path: FILE")
        is_local = entry.get("source", "local") == "local"
        entries[name] = {"file_name" if is_local else "hf_hub_url": str(entry["path"])}
        if entry.get("converter", "alpaca") != "alpaca":
            entries[name]["formatting"] = str(entry["converter"])
        if entry.get("size"):
            entries[name]["num_samples"] = entry["size"]
        if entry.get("weight") not in (None, 1, 1.0):
            entries[name]["weight"] = entry["weight"]
    return entries
