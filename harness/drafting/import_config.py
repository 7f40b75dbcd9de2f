"""Turn the configuration of another trainer into a spec, with four lists.

What was carried over, what changes in meaning, what is not needed, and what a spec cannot express.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from harness.drafting import foreign_data, foreign_groups, foreign_sharding, foreign_tables, foreign_v1, foreign_values
from harness.drafting.foreign_config import read_config
from harness.drafting.foreign_hugging_face import TRAIN
from harness.drafting.foreign_values import Changed, NotConvertible, is_off
from harness.drafting.imported_spec import ImportedSpec
from harness.drafting.relative_path import relative_path
from harness.errors import HarnessError

METHOD_KEYS = {"llamafactory": "finetuning_type", "axolotl": "adapter", "ms-swift": "train_type", "trl": "use_peft"}
_READ_ELSEWHERE = {
    *("max_samples", "val_size", "mask_history", "tuner_type", "train_type", "finetuning_type"),
    "early_stopping_patience",
    *("use_peft", "dataset_config", "dataset_train_split", "lora_model_dir", "dataset_dir", "media_dir"),
}
_WEAK_KEYS = ("dtype", "torch_dtype", "optim")
"""Keys that give way to a more specific one: the dtype of the stored weights to `bf16`, the optimizer to `use_muon`."""


def import_config(tool: str, file: Path, dataset_info: Path | None = None, folder: Path | None = None) -> ImportedSpec:
    """Import the configuration of another trainer.

    Args:
        tool: A key of `foreign_tables.TABLES`.
        file: YAML, JSON, or a shell script with the command line.
        dataset_info: LLaMA-Factory's dataset_info.json; None: the one beside the data, if there is one.
        folder: The folder of the spec, to which its paths are relative; None: the working directory.

    Raises:
        HarnessError: The file cannot be read, or names neither a model nor data.
    """
    config: Mapping[str, Any] = read_config(file)
    entries: Mapping[str, Any] | None = None
    if tool == "llamafactory" and foreign_v1.is_v1(config):
        config, entries = foreign_v1.to_first_engine(config, file)
    name = re.sub(r"[^A-Za-z0-9_.-]+", "-", file.stem).strip("-.") or "imported"
    imported = ImportedSpec(folder or Path(), {"name": name})
    adapter = _adapter_of(tool, config, imported)
    settings = _with_defaults(tool, config, adapter)
    # A key that is off never replaces what another one set: it comes last and finds its place taken.
    for key in sorted(settings, key=lambda key: _is_weak(key, settings[key])):
        _import_key(tool, key, settings[key], key in config, imported)
    for name in {"lora", "oft"} - {adapter}:
        imported.document.get("mitigations", {}).pop(name, None)
    if adapter and not imported.document.setdefault("mitigations", {}).setdefault(adapter, {}).get("target"):
        options = imported.document["mitigations"][adapter]
        options.pop("target", None)
        if options.get("parameters"):
            options["target"] = []
    if "path" not in imported.document.get("model", {}):
        raise HarnessError(str(file), f"names no model, as a configuration of {tool} does", "check the first argument")
    model = imported.document["model"]
    if os.path.exists(model["path"]):
        model["path"] = relative_path(model["path"], imported.folder)
    foreign_groups.import_groups(tool, config, imported, METHOD_KEYS[tool])
    foreign_sharding.import_sharding(config, file, imported)
    foreign_sharding.import_activation_offloading(config, imported)
    foreign_data.import_data(tool, config, file, dataset_info if entries is None else entries, imported)
    _import_template(tool, config, imported)
    return imported


# -- keys -------------------------------------------------------------------------------------------------------------


def _adapter_of(tool: str, config: Mapping[str, Any], imported: ImportedSpec) -> str:
    """Return the mitigation that adds the adapter; "": all weights are trained."""
    key = METHOD_KEYS[tool]
    if tool == "ms-swift" and "tuner_type" in config:
        key = "tuner_type"
    method = config.get(key, "lora" if tool in ("llamafactory", "ms-swift") else None)
    if tool == "trl":
        method = "lora" if method else None
    adapter = {"lora": "lora", "qlora": "lora", "oft": "oft"}.get(str(method).lower(), "")
    if not adapter and method not in ("full", None, ""):
        imported.dropped.append((key, f"the method {method!r} is not known; all weights are trained"))
    elif key in config:
        imported.carried.append((key, f"mitigations.{adapter}" if adapter else "no adapter: all weights are trained"))
    return adapter


def _with_defaults(tool: str, config: Mapping[str, Any], adapter: str) -> dict[str, Any]:
    """Return the configuration with those of its trainer's defaults that a spec must state."""
    defaults = dict(foreign_tables.DEFAULTS[tool])
    if tool == "ms-swift" and adapter:
        defaults["learning_rate"] = 1e-4
    if adapter != "lora":
        defaults = {key: value for key, value in defaults.items() if not key.startswith("lora_")}
    if any(config.get(key) for key in ("warmup_steps", "warmup_ratio")):
        defaults.pop("warmup_ratio", None)
    return {**defaults, **config}


def _is_weak(key: str, value: Any) -> bool:
    """Return whether what a key sets gives way to a sibling, such as `fp16: false` to `bf16: true`."""
    return is_off(value) or value == "auto" or key in _WEAK_KEYS


def _import_key(tool: str, key: str, value: Any, stated: bool, imported: ImportedSpec) -> None:
    if key in _READ_ELSEWHERE or key in (foreign_data.DATA_KEYS[tool], METHOD_KEYS[tool]):
        return
    if key in foreign_tables.QUANTIZATION[tool] or key in (
        *foreign_groups.GROUPED_KEYS[tool],
        *foreign_sharding.SHARDING_KEYS,
    ):
        return
    entry = foreign_tables.TABLES[tool].get(key)
    off = is_off(value)
    if entry is None:
        if not off:
            imported.dropped.append((key, "the key is not known"))
        return
    if entry.why:
        if not off:
            imported.dropped.append((key, entry.why))
        return
    if value is None or (off and not entry.path) or (_is_weak(key, value) and _has(imported.document, entry.path)):
        return
    try:
        converted = entry.convert(value)
    except NotConvertible as error:
        imported.dropped.append((key, str(error)))
        return
    if converted is foreign_values.OFF:
        return
    if entry.unneeded:
        imported.unneeded.append((key, entry.unneeded))
        return
    if not entry.path and entry.change:
        imported.changed.append((key, entry.change))
    if not entry.path or entry.path in ("template", "system", "held_out", "text_column"):
        return  # read where the sources are
    path, change = entry.path, entry.change
    if isinstance(converted, Changed):
        converted, change = converted.value, converted.change
    if path == f"{TRAIN}.warmup_steps" and converted < 1:
        path, converted = f"{TRAIN}.warmup_ratio", float(converted)
    _set(imported.document, path, converted)
    if not stated:
        imported.carried.append((f"{key} (its default, {value})", path))
    elif change:
        imported.changed.append((key, f"{path}: {change}"))
    else:
        imported.carried.append((key, path))


def _set(document: dict[str, Any], path: str, value: Any) -> None:
    *parents, last = path.split(".")
    for name in parents:
        document = document.setdefault(name, {})
    document[last] = value


def _has(document: Any, path: str) -> bool:
    for name in path.split("."):
        if not isinstance(document, dict) or name not in document:
            return False
        document = document[name]
    return True


# -- template ---------------------------------------------------------------------------------------------------------


def _import_template(tool: str, config: Mapping[str, Any], imported: ImportedSpec) -> None:
    """Set the template: one with the same name, else the chat template of the tokenizer."""
    key = "chat_template" if tool == "axolotl" else "template"
    named = str(config.get(key) or "")
    system = config.get("system") if tool == "ms-swift" else None
    if named and (named in _SAME_TEMPLATES or (tool == "llamafactory" and named == "default")):
        name = "tokenizer" if named in ("tokenizer_default", "default") else named
        imported.document["template"] = name
        imported.carried.append((key, f"template: {name}"))
    else:
        imported.document["template"] = "tokenizer"
        entries = config.get("datasets") if tool == "axolotl" else None
        if not named and _has_only_alpaca_rows(entries):
            imported.document["template"] = "alpaca"
            imported.carried.append(("datasets: type", "template: alpaca"))
        elif named:
            text = f"template: tokenizer, the chat template of the model, not {named!r}: compare with harness preview"
            imported.changed.append((key, text))
        else:
            imported.changed.append((f"no {key}", "template: tokenizer, the chat template of the model"))
    if system:
        imported.dropped.append(
            ("system", "the default system message is an option of a template: qwen and chatml have it")
        )


def _has_only_alpaca_rows(entries: Any) -> bool:
    """Return whether every entry of Axolotl's data has the type `alpaca`, which writes Alpaca's prompt."""
    return isinstance(entries, list) and all(
        isinstance(entry, Mapping) and entry.get("type") == "alpaca" for entry in entries
    )


_SAME_TEMPLATES = (
    *("llama2", "llama3", "mistral", "gemma", "vicuna", "zephyr", "alpaca", "chatml", "qwen", "phi"),
    "tokenizer_default",
)
