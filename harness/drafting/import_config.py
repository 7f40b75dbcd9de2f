"""Turn the configuration of another trainer into a spec, with three lists: carried over, changed, not expressible."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from harness.drafting import foreign_data, foreign_tables
from harness.drafting.foreign_config import read_config
from harness.drafting.foreign_tables import NotConvertible
from harness.drafting.imported_spec import ImportedSpec
from harness.drafting.relative_path import relative_path
from harness.errors import HarnessError

METHOD_KEYS = {"llamafactory": "finetuning_type", "axolotl": "adapter", "ms-swift": "train_type", "trl": "use_peft"}
_READ_ELSEWHERE = {
    *("max_samples", "val_size", "eval_dataset", "mask_history", "tuner_type", "train_type", "finetuning_type"),
    *("use_peft", "dataset_config", "dataset_train_split", "lora_model_dir", "dataset_dir", "media_dir"),
    "lr_scheduler_kwargs",
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
    config = read_config(file)
    name = re.sub(r"[^A-Za-z0-9_.-]+", "-", file.stem).strip("-.") or "imported"
    imported = ImportedSpec(folder or Path(), {"name": name})
    lora = _uses_lora(tool, config, imported)
    settings = _with_defaults(tool, config, lora)
    # A key that is off never replaces what another one set: it comes last and finds its place taken.
    for key in sorted(settings, key=lambda key: _is_weak(key, settings[key])):
        _import_key(tool, key, settings[key], key in config, imported)
    if not lora:
        imported.document.get("mitigations", {}).pop("lora", None)
    elif not imported.document.setdefault("mitigations", {}).setdefault("lora", {}).get("target"):
        imported.document["mitigations"]["lora"].pop("target", None)
    if "model" not in imported.document:
        raise HarnessError(str(file), f"names no model, as a configuration of {tool} does", "check the first argument")
    model = imported.document["model"]
    if os.path.exists(model["path"]):
        model["path"] = relative_path(model["path"], imported.folder)
    _import_quantization(tool, config, imported)
    _import_scheduler_options(config, imported)
    foreign_data.import_data(tool, config, file, dataset_info, imported)
    _import_template(tool, config, imported)
    return imported


# -- keys -------------------------------------------------------------------------------------------------------------


def _uses_lora(tool: str, config: Mapping[str, Any], imported: ImportedSpec) -> bool:
    key = METHOD_KEYS[tool]
    if tool == "ms-swift" and "tuner_type" in config:
        key = "tuner_type"
    method = config.get(key, "lora" if tool in ("llamafactory", "ms-swift") else None)
    if key in config:
        uses_lora = bool(method) if tool == "trl" else method in ("lora", "qlora")
        imported.carried.append((key, "mitigations.lora" if uses_lora else "no adapter: all weights are trained"))
    if tool == "trl":
        return bool(method)
    if method not in ("lora", "qlora", "full", None, ""):
        imported.dropped.append((key, f"the method {method!r} is not known; all weights are trained"))
    return method in ("lora", "qlora")


def _with_defaults(tool: str, config: Mapping[str, Any], lora: bool) -> dict[str, Any]:
    """Return the configuration with those of its trainer's defaults that a spec must state."""
    defaults = dict(foreign_tables.DEFAULTS[tool])
    if tool == "ms-swift" and lora:
        defaults["learning_rate"] = 1e-4
    if not lora:
        defaults = {key: value for key, value in defaults.items() if not key.startswith("lora_")}
    if any(config.get(key) for key in ("warmup_steps", "warmup_ratio")):
        defaults.pop("warmup_ratio", None)
    return {**defaults, **config}


def _is_off(value: Any) -> bool:
    return value in (None, False, "", [], {}) or str(value).lower() == "none"


def _is_weak(key: str, value: Any) -> bool:
    """Return whether what a key sets gives way to a sibling, such as `fp16: false` to `bf16: true`."""
    return _is_off(value) or value == "auto" or key in _WEAK_KEYS


def _import_key(tool: str, key: str, value: Any, stated: bool, imported: ImportedSpec) -> None:
    if key in _READ_ELSEWHERE or key in (foreign_data.DATA_KEYS[tool], METHOD_KEYS[tool]):
        return
    if key in foreign_tables.QUANTIZATION[tool]:
        return
    entry = foreign_tables.TABLES[tool].get(key)
    is_off = _is_off(value)
    if entry is None:
        if not is_off:
            imported.dropped.append((key, "the key is not known"))
        return
    if entry.why:
        if not is_off:
            imported.dropped.append((key, entry.why))
        return
    if value is None or (is_off and not entry.path) or (_is_weak(key, value) and _has(imported.document, entry.path)):
        return
    try:
        converted = entry.convert(value)
    except NotConvertible as error:
        imported.dropped.append((key, str(error)))
        return
    if converted is foreign_tables.OFF:
        return
    if not entry.path or entry.path in ("template", "system", "held_out", "text_column"):
        return  # read where the sources are
    path, change = entry.path, entry.change
    if path == f"{foreign_tables.TRAIN}.warmup_steps" and converted < 1:
        path, converted = f"{foreign_tables.TRAIN}.warmup_ratio", float(converted)
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


def _import_quantization(tool: str, config: Mapping[str, Any], imported: ImportedSpec) -> None:
    """Set `model.quantization` from the keys that belong together: bits, method, number format, double."""
    names = foreign_tables.QUANTIZATION[tool]
    parts = {name: config[key] for key, name in names.items() if config.get(key) is not None}
    if config.get(METHOD_KEYS[tool]) == "qlora":
        parts.setdefault("4bit", True)
    parts.setdefault("double", tool != "trl")  # TRL alone does not quantize the scales by default
    keys = ", ".join(key for key in names if not _is_off(config.get(key))) or METHOD_KEYS[tool]
    try:
        options = foreign_tables.to_quantization(parts)
    except NotConvertible as error:
        imported.dropped.append((keys, str(error)))
        return
    if options is not None:
        imported.document["model"]["quantization"] = {"bitsandbytes": options}
        imported.carried.append((keys, "model.quantization.bitsandbytes"))


def _import_scheduler_options(config: Mapping[str, Any], imported: ImportedSpec) -> None:
    """Set the options of a schedule from `lr_scheduler_kwargs`."""
    given = config.get("lr_scheduler_kwargs")
    if not given:
        return
    ((name, options),) = imported.document.get("train", {}).get("scheduler", {"": {}}).items()
    known = foreign_tables.SCHEDULER_OPTIONS.get(name, {})
    for option, value in given.items() if isinstance(given, Mapping) else [("", given)]:
        key = f"lr_scheduler_kwargs: {option}"
        try:
            convert_to, convert = known[option]
            options[convert_to] = convert(value)
        except (KeyError, NotConvertible):
            imported.dropped.append((key, f"train.scheduler.{name or 'cosine'} has nothing like it"))
        else:
            imported.carried.append((key, f"train.scheduler.{name}.{convert_to}"))


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
        if named:
            text = f"template: tokenizer, the chat template of the model, not {named!r}: compare with harness preview"
            imported.changed.append((key, text))
        else:
            imported.changed.append((f"no {key}", "template: tokenizer, the chat template of the model"))
    if system:
        imported.dropped.append(
            ("system", "the default system message is an option of a template: qwen and chatml have it")
        )


_SAME_TEMPLATES = (
    *("llama2", "llama3", "mistral", "gemma", "vicuna", "zephyr", "alpaca", "chatml", "qwen", "phi"),
    "tokenizer_default",
)
